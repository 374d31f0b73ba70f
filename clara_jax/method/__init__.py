"""The paper (arXiv 2511.18659), one idea a file; read them in this order.

1. `compressor`: a document becomes M memory vectors (section 2.2), and the loss that aligns the two (L_MSE).
2. `reranker`: a question becomes M vectors of the same space; cosine scores; the contrastive loss.
3. `topk`: the straight-through top-k that lets one loss train ranking and answering (Algorithm 1).
4. `generator`: memories take the place of text in the prompt; `cross_entropy`: the language-modelling loss (L_CE).
5. `stages`: which loss and which parameters make up each training stage.

`parameters` defines the parameter tree; `clara` binds a backbone to the method's hyperparameters.
"""
