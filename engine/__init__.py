"""Everwrite: an embedded, mergeable key-value store. See `open`."""

from everwrite.errors import EverwriteError

__all__ = ["EverwriteError"]
