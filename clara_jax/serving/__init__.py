"""A library behind HTTP: an OpenAI-compatible chat, ranking, search, documents, metrics, and a page."""
