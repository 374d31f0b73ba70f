"""File formats: base models and files of other programs (safetensors, GGUF, ``torch.save``, JSONL), without torch."""
