"""Ten questions about three documents: what a new user sees of a model in the first five minutes.

    python -m benchmarks.ten_questions [--checkpoint DIR] [--k 1 5] [--how memory words both] [--output FILE]

The documents in examples/documents are compressed into a new store, as ``clara ask --documents`` does, and
asked: from memories alone; with the best chunk's text as well (``--expand 1``); and, as controls, from the chunks'
texts alone, from the memories of the worst chunks, and from nothing at all. An answer counts where it contains one of
the right ones (cover match of `clara_jax.metrics.answers`); "found" counts the questions for which a chunk that
holds the answer was read.
"""
