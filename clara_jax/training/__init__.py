"""Training: what a run is told (`config`), how parameters move (`optimizer`), what it reports (`metrics`), the loop."""
