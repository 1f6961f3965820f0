"""Memory for blocks: frames of one size, cut from large pages.

Random reads over hundreds of megabytes miss the TLB on every block unless pages are large, and
frames of one size leave no holes behind when blocks come and go.

Thread safety: its own; a block may be dropped by whoever lets go of it last, on any thread.
Invariant: a pool lives as long as any of its blocks.
"""

from libc.stdint cimport uint64_t

from everwrite.pins cimport Counted
from everwrite.table_format cimport Block
from everwrite.threads cimport pthread_mutex_t


cdef struct BlockPool:
    Counted counted                    # one reference for the owner, one for each block
    pthread_mutex_t mutex
    void* free_frames                  # linked through their first words
    void* slabs                        # linked through their first words
    size_t slab_at                     # frames of the newest slab that were handed out


cdef BlockPool* block_pool_new() noexcept nogil                         # NULL when out of memory
# A block for `size` bytes of content and 8 more, with one reference. NULL when out of memory.
cdef Block* block_new(BlockPool* pool, uint64_t offset, size_t size) noexcept nogil
# Bytes that a block with so much content takes.
cdef size_t block_weight(size_t size) noexcept nogil
