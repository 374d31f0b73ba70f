"""A model behind HTTP: an OpenAI-compatible chat of a base alone, or of a store, with its documents and a page."""
