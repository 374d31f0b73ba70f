"""HTTP servers: an OpenAI-compatible chat of a base alone, or of a document store, with its documents and a page."""
