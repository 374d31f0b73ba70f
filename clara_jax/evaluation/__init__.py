"""Evaluation: suites, systems under conditions, predictions, and the report that is made of them."""
