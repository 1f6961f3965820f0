"""Files of the operating system in memory: where that is safe, and the system calls."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from everwrite.pins cimport counted_init

cdef extern from *:
    """
    #include <errno.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>

    #ifdef __linux__
      #include <sys/vfs.h>
    #endif

    #define EW_PAGES_MAX 64

    /* Whether a file system is a local one where a load fails only with its device, and, for writing, where a store
       in allocated space doesn't fail: it would end the process. Where blocks are promised only when they are written
       (ZFS, btrfs), write() can say so; where they live behind a network or a daemon, so can read(). */
    static int ew_may_map(int handle, int for_writing) {
    #ifdef __linux__
        struct statfs about;
        int status;
        do status = fstatfs(handle, &about); while (status < 0 && errno == EINTR);
        if (status < 0) return 0;
        switch ((unsigned long)about.f_type & 0xfffffffful) {
            case 0xef53:        /* ext2, ext3, ext4 */
            case 0x58465342:    /* XFS */
            case 0x01021994:    /* tmpfs */
            case 0x794c7630:    /* overlayfs */
                return 1;
            case 0x9123683e:    /* btrfs */
            case 0x2fc12fc1:    /* ZFS */
            case 0xf2f52010:    /* F2FS */
                return !for_writing;
        }
    #endif
        (void)handle; (void)for_writing;
        return 0;
    }

    static void* ew_map(int handle, size_t size, int for_writing) {
        void* data;
        if (!ew_may_map(handle, for_writing)) return NULL;
        data = mmap(NULL, size, for_writing ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, handle, 0);
        if (data == MAP_FAILED) return NULL;
        /* Lookups are all over the file: reading ahead of them would fetch what nobody asks for. */
        if (!for_writing) madvise(data, size, MADV_RANDOM);
        return data;
    }

    static int ew_resident(const uint8_t* data, size_t size) {
    #ifdef __linux__
        unsigned char pages[EW_PAGES_MAX];
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        const uint8_t* at = data - (uintptr_t)data % page;
        while (at < data + size) {
            size_t count = ((size_t)(data + size - at) + page - 1) / page, i;
            if (count > EW_PAGES_MAX) count = EW_PAGES_MAX;
            if (mincore((void*)at, count * page, pages) < 0) return 0;
            for (i = 0; i < count; i++) if (!(pages[i] & 1)) return 0;
            at += count * page;
        }
        return 1;
    #else
        (void)data; (void)size;
        return 0;
    #endif
    }

    static void ew_will_need(const uint8_t* data, size_t size) {
        size_t before = (uintptr_t)data % (size_t)sysconf(_SC_PAGESIZE);
        madvise((void*)(data - before), size + before, MADV_WILLNEED);
    }
    """
    void* ew_map(int handle, size_t size, bint for_writing) noexcept nogil
    int munmap(void* data, size_t size) noexcept nogil
    bint ew_resident(const uint8_t* data, size_t size) noexcept nogil
    void ew_will_need(const uint8_t* data, size_t size) noexcept nogil


cdef void _mapping_drop(void* memory) noexcept nogil:
    cdef FileMapping* mapping = <FileMapping*>memory
    munmap(<void*>mapping.data, mapping.size)
    free(mapping)


cdef FileMapping* mapping_for_reading(int handle, size_t size) noexcept nogil:
    cdef FileMapping* mapping = <FileMapping*>malloc(sizeof(FileMapping))
    if mapping == NULL:
        return NULL
    counted_init(&mapping.counted, _mapping_drop)
    mapping.size = size
    mapping.data = <const uint8_t*>ew_map(handle, size, False)
    if mapping.data == NULL:
        free(mapping)
        return NULL
    return mapping


cdef uint8_t* mapping_for_writing(int handle, size_t size) noexcept nogil:
    return <uint8_t*>ew_map(handle, size, True)


cdef void mapping_unmap(uint8_t* data, size_t size) noexcept nogil:
    munmap(data, size)


cdef bint mapping_resident(const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
    return ew_resident(mapping.data + offset, size)


cdef void mapping_will_need(const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
    ew_will_need(mapping.data + offset, size)
