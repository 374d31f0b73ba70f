"""The paper's appendix A: the gradient of the scores has two paths, of which training uses one.

1. `marginal`: the probability path, as a loss of its own.
2. `gradient_paths`: both paths, measured.
"""
