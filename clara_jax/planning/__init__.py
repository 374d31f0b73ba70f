"""Planning: what a run needs on an accelerator, computed without one from compiled programs."""
