"""Preparation of data: importers of published sets, TFDS builders, corpora of documents, a synthetic world."""
