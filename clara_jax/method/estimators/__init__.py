"""Other soft choices than Algorithm 1's, for the gradient of the straight-through top-k.

`methods` names them all and selects with any of them; `sorting`, `transport` and `lapsum` define them. docs/topk.md
compares the gradients.
"""
