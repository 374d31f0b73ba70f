"""The backbone: a decoder-only transformer that knows nothing of CLaRa.

One legend for the shape letters, used in every einsum and comment of the package:

====  ==========================================  ====  ======================================
 B    batch                                        E    embedding dimension (the paper's d)
 D    candidate documents of a question            H    query heads
 K    selected documents (top-k)                   G    key/value heads
 M    memory tokens of a document (the paper's l)  C    head dimension
 T    tokens of a sequence                         F    MLP dimension
 S    key/value slots that attention reads         V    vocabulary of the base
 L    layers                                       R    LoRA rank
 N    rows of any kind, put together               Q    query heads of a key/value head
====  ==========================================  ====  ======================================

Signatures of `clara_jax.model`, `clara_jax.method` and `clara_jax.inference` give shapes and dtypes in these letters
(jaxtyping). Nothing is checked where the package is used; the tests check every call (`tests/conftest.py`).
"""
