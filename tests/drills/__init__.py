"""Drills: what the package must survive, tried many times (python -m pytest -m drill tests/drills)."""
