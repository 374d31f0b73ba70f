"""Training: configurations (`config`, `stage_config`), optimizer (`optimizer`), metrics (`metrics`), loop (`loop`)."""
