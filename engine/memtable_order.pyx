"""The order of a memory table: sort the pending keys, insert them into a B+ tree, walk it."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove

from everwrite.coding cimport Slice, slice_compare
from everwrite.key_order cimport common_prefix, key_head
from everwrite.memtable cimport FANOUT, Entry, Inner, Leaf, Memtable, MemtableCursor, entry_key
from everwrite.pins cimport ew_load, ew_store
from everwrite.prefetch cimport prefetch_line
from everwrite.status cimport Status
from everwrite.threads cimport pthread_mutex_lock, pthread_mutex_unlock


cdef enum:
    HEIGHT_LIMIT = 16                  # a tree of half-full nodes this high would hold 32^16 keys
    INSERTION_SORT_LIMIT = 12
    AHEAD = 16                         # entries that a cursor asks the processor for before it gets there


cdef struct Sortable:
    uint64_t head                      # eight bytes of the key at the depth that is being sorted
    Entry* entry


cdef struct Step:
    Inner* node
    uint32_t child


cdef struct Path:
    # How a leaf was reached, and the first key that is beyond it (NULL: none is).
    Step steps[HEIGHT_LIMIT]
    Leaf* leaf
    Entry* bound


# ---- sorting: multikey quicksort (Bentley and Sedgewick 1997) on eight bytes at a time ----

cdef inline uint64_t _random(uint64_t* state) noexcept nogil:
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return state[0]


cdef void _insertion_sort(Sortable* items, size_t size) noexcept nogil:
    cdef size_t i
    cdef size_t j
    cdef Sortable item
    for i in range(1, size):
        item = items[i]
        j = i
        while j > 0 and (
            items[j - 1].head > item.head
            or (
                items[j - 1].head == item.head
                and slice_compare(entry_key(items[j - 1].entry), entry_key(item.entry)) > 0
            )
        ):
            items[j] = items[j - 1]
            j -= 1
        items[j] = item


cdef void _set_heads(Sortable* items, size_t size, size_t skip) noexcept nogil:
    cdef size_t i
    for i in range(size):
        items[i].head = key_head(entry_key(items[i].entry), skip)


cdef size_t _common_of_all(Sortable* items, size_t size, size_t known) noexcept nogil:
    cdef Slice first = entry_key(items[0].entry)
    cdef size_t common = first.size
    cdef size_t i
    for i in range(1, size):
        common = common_prefix(first, entry_key(items[i].entry), common)
        if common <= known:
            return known
    return common


cdef void _sort(Sortable* items, size_t size, size_t skip, uint64_t* random) noexcept nogil:
    """Sort distinct keys that share their first `skip` bytes; the heads are set for `skip`.

    The pivot is random, so that no client can choose keys that make it quadratic. The two
    smaller parts are sorted by recursion, the largest by the loop: the depth stays below log2(size).
    """
    cdef size_t below
    cdef size_t i
    cdef size_t above
    cdef uint64_t pivot
    cdef Sortable item
    cdef size_t sizes[3]
    cdef size_t largest
    while size > INSERTION_SORT_LIMIT:
        pivot = items[_random(random) % size].head
        below = 0
        i = 0
        above = size
        while i < above:
            item = items[i]
            if item.head < pivot:
                items[i] = items[below]
                items[below] = item
                below += 1
                i += 1
            elif item.head > pivot:
                above -= 1
                items[i] = items[above]
                items[above] = item
            else:
                i += 1
        sizes[0] = below
        sizes[1] = above - below
        sizes[2] = size - above
        largest = 0 if sizes[0] >= sizes[1] and sizes[0] >= sizes[2] else (1 if sizes[1] >= sizes[2] else 2)
        if largest != 0:
            _sort(items, below, skip, random)
        if largest != 2:
            _sort(items + above, size - above, skip, random)
        if largest != 1:
            _sort_ties(items + below, sizes[1], skip, random)
        if largest == 0:
            size = below
        elif largest == 2:
            items += above
            size -= above
        else:
            items += below
            size = sizes[1]
            skip = _common_of_all(items, size, skip)
            _set_heads(items, size, skip)
    _insertion_sort(items, size)


cdef void _sort_ties(Sortable* items, size_t size, size_t skip, uint64_t* random) noexcept nogil:
    if size < 2:
        return
    if size > INSERTION_SORT_LIMIT:
        skip = _common_of_all(items, size, skip)
        _set_heads(items, size, skip)
    _sort(items, size, skip, random)


# ---- nodes: a leaf's entries and an inner node's separators are searched and kept alike ----

cdef uint32_t _rank(
    Slice key, uint32_t count, uint32_t skip, const uint64_t* heads, Entry** entries, bint after_equal
) noexcept nogil:
    """How many of the keys are smaller than `key`, or, with `after_equal`, not greater."""
    cdef uint32_t low = 0
    cdef uint32_t high = count
    cdef uint32_t middle
    cdef uint64_t head
    cdef int c
    cdef Slice first
    if count == 0:
        return 0
    if skip > 0:
        first = entry_key(entries[0])
        first.size = skip
        c = slice_compare(Slice(key.data, key.size if key.size < skip else skip), first)
        if c != 0:
            return 0 if c < 0 else count
    head = key_head(key, skip)
    while low < high:
        middle = (low + high) >> 1
        if heads[middle] < head:
            low = middle + 1
        elif heads[middle] > head:
            high = middle
        else:
            c = slice_compare(entry_key(entries[middle]), key)
            if c < 0 or (c == 0 and after_equal):
                low = middle + 1
            else:
                high = middle
    return low


cdef void _renew_heads(
    uint32_t count, uint32_t* skip, uint64_t* heads, Entry** entries, uint32_t common
) noexcept nogil:
    cdef uint32_t i
    skip[0] = common
    for i in range(count):
        heads[i] = key_head(entry_key(entries[i]), common)


cdef void _tighten(uint32_t count, uint32_t* skip, uint64_t* heads, Entry** entries) noexcept nogil:
    """After a split: the keys left may share more than all of them did."""
    cdef uint32_t common
    if count == 0:
        skip[0] = 0
        return
    common = <uint32_t>common_prefix(entry_key(entries[0]), entry_key(entries[count - 1]), <size_t>-1)
    if common != skip[0]:
        _renew_heads(count, skip, heads, entries, common)


cdef void _insert_key(
    Entry* entry, uint32_t position, uint32_t* count, uint32_t* skip, uint64_t* heads, Entry** entries
) noexcept nogil:
    cdef Slice key = entry_key(entry)
    cdef uint32_t common
    if count[0] == 0:
        skip[0] = <uint32_t>key.size
    else:
        common = <uint32_t>common_prefix(key, entry_key(entries[0]), skip[0])
        if common < skip[0]:
            _renew_heads(count[0], skip, heads, entries, common)
    memmove(&heads[position + 1], &heads[position], (count[0] - position) * sizeof(uint64_t))
    memmove(&entries[position + 1], &entries[position], (count[0] - position) * sizeof(void*))
    heads[position] = key_head(key, skip[0])
    entries[position] = entry
    count[0] += 1


# ---- the tree ----

cdef Leaf* _leaf_new(Memtable* t) noexcept nogil:
    cdef Leaf* leaf = <Leaf*>calloc(1, sizeof(Leaf))
    if leaf != NULL:
        t.memory += sizeof(Leaf)
    return leaf


cdef void _descend(Memtable* t, Slice key, Path* path) noexcept nogil:
    cdef void* node = t.root
    cdef Inner* inner
    cdef uint32_t level
    cdef uint32_t child
    path.bound = NULL
    for level in range(t.height):
        inner = <Inner*>node
        child = _rank(key, inner.count, inner.skip, inner.heads, inner.separators, True)
        if child < inner.count:
            path.bound = inner.separators[child]
        path.steps[level].node = inner
        path.steps[level].child = child
        node = inner.children[child]
    path.leaf = <Leaf*>node


cdef void _insert_child(Inner* inner, uint32_t position, Entry* separator, void* child) noexcept nogil:
    memmove(&inner.children[position + 2], &inner.children[position + 1], (inner.count - position) * sizeof(void*))
    inner.children[position + 1] = child
    _insert_key(separator, position, &inner.count, &inner.skip, inner.heads, inner.separators)


cdef void _split_inner(Inner* left, Inner* right, Entry** separator) noexcept nogil:
    """Move the upper half to `right`; the key between the halves goes up."""
    cdef uint32_t middle = left.count // 2
    separator[0] = left.separators[middle]
    right.count = left.count - middle - 1
    right.skip = left.skip
    memcpy(right.heads, &left.heads[middle + 1], right.count * sizeof(uint64_t))
    memcpy(right.separators, &left.separators[middle + 1], right.count * sizeof(void*))
    memcpy(right.children, &left.children[middle + 1], (right.count + 1) * sizeof(void*))
    left.count = middle
    _tighten(left.count, &left.skip, left.heads, left.separators)
    _tighten(right.count, &right.skip, right.heads, right.separators)


cdef uint32_t _inner_needed(Memtable* t, const Path* path) noexcept nogil:
    """How many inner nodes a split of the path's leaf makes: one for each full level above it, and perhaps a root."""
    cdef uint32_t level = t.height
    while level > 0 and path.steps[level - 1].node.count == FANOUT:
        level -= 1
    return t.height - level + (1 if level == 0 else 0)


cdef int _split(Memtable* t, Path* path, bint at_end) noexcept nogil:
    """Split the path's full leaf. ERR_MEMORY: the tree is as it was, since all nodes are allocated first."""
    cdef Inner* fresh[HEIGHT_LIMIT + 1]
    cdef uint32_t needed = _inner_needed(t, path)
    cdef uint32_t made = 0
    cdef uint32_t level = t.height
    cdef Leaf* left = path.leaf
    cdef Leaf* right = _leaf_new(t)
    cdef Entry* separator
    cdef void* child = right
    cdef Inner* inner
    cdef uint32_t keep
    while right != NULL and made < needed:
        fresh[made] = <Inner*>calloc(1, sizeof(Inner))
        if fresh[made] == NULL:
            break
        made += 1
    if right == NULL or made < needed or t.height >= HEIGHT_LIMIT:
        while made > 0:
            made -= 1
            free(fresh[made])
        if right != NULL:
            t.memory -= sizeof(Leaf)
            free(right)
        return Status.ERR_MEMORY
    t.memory += needed * sizeof(Inner)
    # Keys that arrive in ascending order leave full leaves behind them.
    keep = FANOUT - 1 if at_end else FANOUT // 2
    right.count = left.count - keep
    right.skip = left.skip
    memcpy(right.heads, &left.heads[keep], right.count * sizeof(uint64_t))
    memcpy(right.entries, &left.entries[keep], right.count * sizeof(void*))
    right.next = left.next
    right.previous = left
    if left.next != NULL:
        left.next.previous = right
    left.next = right
    left.count = keep
    _tighten(left.count, &left.skip, left.heads, left.entries)
    _tighten(right.count, &right.skip, right.heads, right.entries)
    separator = right.entries[0]
    made = 0
    while level > 0:
        level -= 1
        inner = path.steps[level].node
        if inner.count < FANOUT:
            _insert_child(inner, path.steps[level].child, separator, child)
            return Status.OK
        child = _split_around(inner, fresh[made], path.steps[level].child, &separator, child)
        made += 1
    inner = fresh[made]
    inner.children[0] = t.root
    _insert_child(inner, 0, separator, child)
    t.root = inner
    t.height += 1
    return Status.OK


cdef void* _split_around(Inner* left, Inner* right, uint32_t position, Entry** separator, void* child) noexcept nogil:
    """Split a full inner node and insert (separator, child) behind its child number `position`."""
    cdef Entry* below = separator[0]
    _split_inner(left, right, separator)
    if position <= left.count:
        _insert_child(left, position, below, child)
    else:
        _insert_child(right, position - left.count - 1, below, child)
    return right


cdef int _tree_insert(Memtable* t, Path* path, Entry* entry) noexcept nogil:
    """Insert a key that the tree doesn't hold. `path` leads to the last key's leaf (NULL: to none) and is updated."""
    cdef Slice key = entry_key(entry)
    cdef uint32_t position
    # Sorted keys mostly go where the last one went: no descent then. (Only a bound is checked: keys come ascending.)
    if path.leaf == NULL or (path.bound != NULL and slice_compare(key, entry_key(path.bound)) >= 0):
        _descend(t, key, path)
    position = _rank(key, path.leaf.count, path.leaf.skip, path.leaf.heads, path.leaf.entries, False)
    if path.leaf.count == FANOUT:
        if _split(t, path, position == FANOUT and path.leaf.next == NULL) < 0:
            return Status.ERR_MEMORY
        _descend(t, key, path)
        position = _rank(key, path.leaf.count, path.leaf.skip, path.leaf.heads, path.leaf.entries, False)
    _insert_key(entry, position, &path.leaf.count, &path.leaf.skip, path.leaf.heads, path.leaf.entries)
    return Status.OK


cdef int _merge_pending(Memtable* t) noexcept nogil:
    cdef size_t count = t.pending_count
    cdef Sortable* items
    cdef Path path
    cdef uint64_t random = t.seed | 1
    cdef size_t skip
    cdef size_t i
    cdef int status = Status.OK
    path.leaf = NULL
    if t.root == NULL:
        t.root = _leaf_new(t)
        if t.root == NULL:
            return Status.ERR_MEMORY
    if count == 1:
        status = _tree_insert(t, &path, t.pending[0])
    else:
        items = <Sortable*>malloc(count * sizeof(Sortable))
        if items == NULL:
            return Status.ERR_MEMORY
        for i in range(count):
            items[i].entry = t.pending[i]
        skip = _common_of_all(items, count, 0)
        _set_heads(items, count, skip)
        _sort(items, count, skip, &random)
        i = 0
        while i < count and status == Status.OK:
            status = _tree_insert(t, &path, items[i].entry)
            i += 1
        if status < 0:
            # What got in stays; the rest (the failed one included) stays pending.
            i -= 1
            count -= i
            while count > 0:
                count -= 1
                t.pending[count] = items[i + count].entry
            t.pending_count -= i
        free(items)
    t.tree_version += 1
    if status == Status.OK:
        ew_store(&t.pending_count, 0)
    return status


cdef int order_update(Memtable* t) noexcept nogil:
    cdef int status = Status.OK
    if ew_load(&t.pending_count) == 0:
        return Status.OK
    pthread_mutex_lock(&t.order_lock)
    if t.pending_count != 0:
        status = _merge_pending(t)
    pthread_mutex_unlock(&t.order_lock)
    return status


cdef void _free_node(void* node, uint32_t height) noexcept nogil:
    cdef Inner* inner = <Inner*>node
    cdef uint32_t i
    if height > 0:
        for i in range(inner.count + 1):
            _free_node(inner.children[i], height - 1)
    free(node)


cdef void order_free(Memtable* t) noexcept nogil:
    if t.root != NULL:
        _free_node(t.root, t.height)
        t.root = NULL
    free(t.pending)
    t.pending = NULL


# ---- cursors ----

cdef inline void _prefetch_entry(const Leaf* leaf, uint32_t position) noexcept nogil:
    cdef const Entry* e = leaf.entries[position]
    prefetch_line(e)
    prefetch_line(<const char*>e + 64)
    prefetch_line(<const char*>e + 128)
    prefetch_line(<const char*>e + 184)


cdef inline void _prefetch_leaf(const Leaf* leaf) noexcept nogil:
    cdef size_t i
    if leaf != NULL:
        for i in range(0, sizeof(leaf.entries), 64):
            prefetch_line(<const char*>leaf.entries + i)
        prefetch_line(leaf)


cdef inline void _look_ahead(const Leaf* leaf, uint32_t position) noexcept nogil:
    """Entries lie in the order of their arrival: a walk in key order misses the cache on each unless it asks early."""
    if position + AHEAD < leaf.count:
        _prefetch_entry(leaf, position + AHEAD)
    elif leaf.next != NULL and position + AHEAD - leaf.count < leaf.next.count:
        _prefetch_entry(leaf.next, position + AHEAD - leaf.count)


cdef inline void _look_back(const Leaf* leaf, uint32_t position) noexcept nogil:
    if position >= AHEAD:
        _prefetch_entry(leaf, position - AHEAD)
    elif leaf.previous != NULL and leaf.previous.count + position >= AHEAD:
        _prefetch_entry(leaf.previous, leaf.previous.count + position - AHEAD)


cdef inline void _settle(MemtableCursor* c) noexcept nogil:
    """A position behind a leaf's last entry is the next leaf's first."""
    while c.leaf != NULL and c.position >= c.leaf.count:
        c.leaf = c.leaf.next
        c.position = 0
        if c.leaf != NULL:
            _prefetch_leaf(c.leaf.next)
    c.entry = c.leaf.entries[c.position] if c.leaf != NULL else NULL


cdef inline void _settle_before(MemtableCursor* c, uint32_t rank) noexcept nogil:
    """Stand on the entry before a place in the leaf."""
    while c.leaf != NULL and rank == 0:
        c.leaf = c.leaf.previous
        if c.leaf != NULL:
            rank = c.leaf.count
            _prefetch_leaf(c.leaf.previous)
    c.entry = NULL
    if c.leaf != NULL:
        c.position = rank - 1
        c.entry = c.leaf.entries[c.position]


cdef int _start(MemtableCursor* c, Memtable* t) noexcept nogil:
    """1: there is a tree to search. 0: nothing is in the table."""
    c.table = t
    c.leaf = NULL
    c.entry = NULL
    if order_update(t) < 0:
        return Status.ERR_MEMORY
    c.tree_version = t.tree_version
    return t.root != NULL


cdef int cursor_seek(MemtableCursor* c, Memtable* t, Slice key) noexcept nogil:
    cdef Path path
    cdef int status = _start(c, t)
    if status <= 0:
        return status
    _descend(t, key, &path)
    c.leaf = path.leaf
    c.position = _rank(key, c.leaf.count, c.leaf.skip, c.leaf.heads, c.leaf.entries, False)
    _settle(c)
    return Status.OK


cdef int cursor_seek_back(MemtableCursor* c, Memtable* t, Slice key, bint or_equal) noexcept nogil:
    cdef Path path
    cdef int status = _start(c, t)
    if status <= 0:
        return status
    _descend(t, key, &path)
    c.leaf = path.leaf
    _settle_before(c, _rank(key, c.leaf.count, c.leaf.skip, c.leaf.heads, c.leaf.entries, or_equal))
    return Status.OK


cdef int cursor_seek_last(MemtableCursor* c, Memtable* t) noexcept nogil:
    cdef void* node
    cdef uint32_t _level
    cdef int status = _start(c, t)
    if status <= 0:
        return status
    node = t.root
    for _level in range(t.height):
        node = (<Inner*>node).children[(<Inner*>node).count]
    c.leaf = <Leaf*>node
    _settle_before(c, c.leaf.count)
    return Status.OK


cdef int cursor_next(MemtableCursor* c) noexcept nogil:
    if order_update(c.table) < 0:
        return Status.ERR_MEMORY
    if c.tree_version != c.table.tree_version and cursor_seek(c, c.table, entry_key(c.entry)) < 0:
        return Status.ERR_MEMORY
    c.position += 1
    _settle(c)
    if c.leaf != NULL:
        _look_ahead(c.leaf, c.position)
    return Status.OK


cdef int cursor_previous(MemtableCursor* c) noexcept nogil:
    if order_update(c.table) < 0:
        return Status.ERR_MEMORY
    if c.tree_version != c.table.tree_version:
        return cursor_seek_back(c, c.table, entry_key(c.entry), False)
    _settle_before(c, c.position)
    if c.leaf != NULL:
        _look_back(c.leaf, c.position)
    return Status.OK
