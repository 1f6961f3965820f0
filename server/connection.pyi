"""One client's socket with its buffers. Knows bytes, not commands: nothing of it is for Python."""
