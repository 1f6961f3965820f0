"""The tests: one module a module of the packages, and folders for what takes several."""
