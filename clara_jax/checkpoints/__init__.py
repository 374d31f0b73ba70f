"""Weights in and out: base models and foreign files (safetensors, GGUF, ``torch.save``), read without torch."""
