"""The input pipeline: all that a training step reads, from records to batches on the host; numpy only."""
