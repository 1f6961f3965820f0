"""Frames for blocks, and what returns them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from everwrite.pins cimport counted_hold, counted_init, counted_release
from everwrite.table_format cimport LINE_SIZE, Block
from everwrite.threads cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef extern from *:
    """
    #include <stdlib.h>
    #include <sys/mman.h>
    static void* ew_frame_memory(size_t alignment, size_t size) {
        void* at = NULL;
        return posix_memalign(&at, alignment, size) == 0 ? at : NULL;
    }
    static void ew_frame_pages(void* at, size_t size) {
    #ifdef MADV_HUGEPAGE
        madvise(at, size, MADV_HUGEPAGE);
    #else
        (void)at; (void)size;
    #endif
    }
    """
    void* ew_frame_memory(size_t alignment, size_t size) noexcept nogil
    void ew_frame_pages(void* at, size_t size) noexcept nogil


cdef enum:
    # Some lines more than a page: else the headers of all blocks would fall in one set of the processor's cache.
    FRAME = 4224
    SLAB = 2 << 20
    SLAB_FRAMES = SLAB // FRAME
    READ_ROOM = 8                      # an entry of the index is read as a word, and may be the last of its block


cdef void _pool_drop(void* memory) noexcept nogil:
    cdef BlockPool* pool = <BlockPool*>memory
    cdef void* following
    while pool.slabs != NULL:
        # The links of slabs lie in their first frames, which are never handed out.
        following = (<void**>pool.slabs)[0]
        free(pool.slabs)
        pool.slabs = following
    pthread_mutex_destroy(&pool.mutex)
    free(pool)


cdef BlockPool* block_pool_new() noexcept nogil:
    cdef BlockPool* pool = <BlockPool*>calloc(1, sizeof(BlockPool))
    if pool == NULL:
        return NULL
    counted_init(&pool.counted, _pool_drop)
    pthread_mutex_init(&pool.mutex, NULL)
    pool.slab_at = SLAB_FRAMES
    return pool


cdef void* _take_frame(BlockPool* pool) noexcept nogil:
    cdef void* frame = NULL
    cdef void* slab
    pthread_mutex_lock(&pool.mutex)
    if pool.free_frames != NULL:
        frame = pool.free_frames
        pool.free_frames = (<void**>frame)[0]
    else:
        if pool.slab_at == SLAB_FRAMES:
            slab = ew_frame_memory(SLAB, SLAB)
            if slab != NULL:
                ew_frame_pages(slab, SLAB)
                (<void**>slab)[0] = pool.slabs
                pool.slabs = slab
                pool.slab_at = 1
        if pool.slab_at < SLAB_FRAMES:
            frame = <uint8_t*>pool.slabs + pool.slab_at * FRAME
            pool.slab_at += 1
    pthread_mutex_unlock(&pool.mutex)
    return frame


cdef void _block_drop(void* memory) noexcept nogil:
    cdef Block* block = <Block*>memory
    cdef BlockPool* pool = <BlockPool*>block.pool
    if pool == NULL:
        free(block)
        return
    pthread_mutex_lock(&pool.mutex)
    (<void**>block)[0] = pool.free_frames
    pool.free_frames = block
    pthread_mutex_unlock(&pool.mutex)
    counted_release(&pool.counted)


cdef size_t block_weight(size_t size) noexcept nogil:
    cdef size_t weight = sizeof(Block) + size + READ_ROOM
    return FRAME if weight <= FRAME else weight


cdef Block* block_new(BlockPool* pool, uint64_t offset, size_t size) noexcept nogil:
    cdef Block* block = NULL
    cdef size_t weight = block_weight(size)
    if weight > FRAME:
        pool = NULL
    block = <Block*>(_take_frame(pool) if pool != NULL else ew_frame_memory(LINE_SIZE, weight))
    if block == NULL:
        return NULL
    counted_init(&block.counted, _block_drop)
    block.pool = pool
    if pool != NULL:
        counted_hold(&pool.counted)
    block.owner = NULL
    block.offset = offset
    block.size = <uint32_t>size
    block.count = 0
    block.leaves = 0
    return block
