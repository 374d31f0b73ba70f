"""Evaluation: metrics, suites, systems and reports. Training and benchmarks use the same metrics."""
