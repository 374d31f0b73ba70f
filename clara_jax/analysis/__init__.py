"""Analyses of a model's internals, each measure with its control.

They show what memories hold (logit lens), where they lie (geometry), what the generator attends to, and how stable the
selection of documents is.
"""
