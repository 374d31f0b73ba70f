"""The paper (arXiv 2511.18659), one idea a file; read them in this order.

1. `compressor`: a document becomes M memory vectors (section 2.2), and the loss that aligns the two (L_MSE).
2. `reranker`: a question becomes M vectors of the same space; cosine scores; the contrastive loss.
3. `topk`: the straight-through top-k that lets one loss train ranking and answering (Algorithm 1).
4. `generator`: memories take the place of text in the prompt; the language-modelling loss (L_CE), whose logits
   `cross_entropy` computes in chunks.
5. `stages`: which loss and which parameters make up each training stage.

Beside the path: `estimators` has other soft choices for the top-k, `appendix` the second path of the scores' gradient
(appendix A). `parameters` defines the parameter tree, `merging` adds an adapter to the base, and `clara` binds a
backbone to the method's hyperparameters.
"""
