"""Readiness by epoll(7). A kqueue version replaces this file and nothing else: nothing of it is for Python."""
