"""How good a student becomes with more rows, beside TRL at the same compute and a classifier. `python -m tests.bench.quality`."""
