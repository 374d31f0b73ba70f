"""Metrics, one implementation for training, evaluation and benchmarks: answers, ranking, intervals, controls."""
