"""Examples: CLaRa in one file of plain JAX."""
