"""Slow twins in plain Python that say what the native code must answer."""
