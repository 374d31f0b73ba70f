"""Training: a run's configuration (`config`), the optimizer (`optimizer`), metrics (`metrics`), the loop (`loop`)."""
