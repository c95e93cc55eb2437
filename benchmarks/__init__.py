"""Benchmarks: programs that measure, beside something to compare with. `python -m benchmarks.log --help`."""
