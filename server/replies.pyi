"""Error replies that more than one command gives, in Redis's words: nothing of it is for Python."""
