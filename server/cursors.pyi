"""SCAN's cursors. The declarations say what holds: nothing of it is for Python."""
