"""Commands on strings and counters: nothing of it is for Python."""
