"""Commands on sets and hashes: nothing of it is for Python."""
