"""What a result is measured by: one implementation of each metric, for training, evaluation and benchmarks."""
