"""What a run will need on an accelerator, found out without one: chips, topologies, compiled programs."""
