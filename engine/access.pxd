"""What the functions that Python calls share."""

from everwrite.coding cimport Slice
from everwrite.store cimport Store


# The end of a read that holds the lock: lets go of it, and gives the value for status 1, None for 0; else it raises.
cdef object released(Store store, int status, Slice value)
