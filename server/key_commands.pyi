"""Commands on keys of any type, and the few on the connection that need no Python: nothing of it is for Python."""
