"""Measurements for the figures of docs/results.md, one command each: ``python -m benchmarks.NAME``."""
