"""From JSONL files to batches: records, prompts, tokens, batches; numpy only."""
