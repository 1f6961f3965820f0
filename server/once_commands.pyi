"""EW.ONCE: nothing of it is for Python."""
