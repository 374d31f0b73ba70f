"""Looks inside a model: what its memories hold, where they lie, what the generator reads of them, and how firmly
documents are selected. Each measure stands beside its control."""
