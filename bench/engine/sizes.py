"""How much the benchmarks work on."""

VALUE = b"v" * 100
KEYS = 100_000
