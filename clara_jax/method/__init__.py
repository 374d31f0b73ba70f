"""The paper (arXiv 2511.18659), one idea a file; read them in this order.

0. `clara`: the method's hyperparameters, and the backbone with the adapter of one of its three roles;
   `clara_jax.input_pipeline.batches`: what a batch holds.
1. `compressor`: a document, or a question, becomes M memory vectors (section 2.2); the loss that aligns a document's
   memories and text (L_MSE).
2. `reranker`: scores of documents for a question (section 3); the contrastive loss.
3. `topk`: the straight-through top-k that lets one loss train ranking and answering (Algorithm 1).
4. `generator`: memories take the place of text in the prompt; the language-modelling loss (L_CE), whose logits
   `cross_entropy` computes in chunks.
5. `stages`: which loss and which parameters make up each training stage. It chooses by `estimators.methods.select`,
   which is Algorithm 1 unless a configuration names another soft choice.

Beside the path: `memory_map` has an affine map of memories and the scaffold that it is trained with, `estimators` other
soft choices for the top-k, `appendix` the two paths of the scores' gradient (appendix A). `parameters` defines the
parameter tree, and `merging` adds an adapter to the base.

Letters of shapes: B rows of a batch, D documents of a row, K ranks, M vectors of a memory (the paper's l), E their
width (the paper's d), T positions, A labels, S sequences of a packed row, N rows of an encoder, V the vocabulary, L
layers, H heads, C channels of a head.
"""
