"""CLaRa (Continuous Latent Reasoning, arXiv 2511.18659) in JAX and Flax.

One language model with three LoRA adapters compresses documents into a few memory vectors, ranks them for a question,
and answers from them. `Clara` is a model in Python, `RagPipeline` a model with a document store;
``python -m clara_jax.train`` trains.
"""

from typing import TYPE_CHECKING, Any

from clara_jax import moved

if TYPE_CHECKING:
    from clara_jax.api import Clara
    from clara_jax.errors import ClaraError
    from clara_jax.rag_pipeline import RagPipeline
    from clara_jax.results import Answer, Hit, Memories, Ranking

moved.install()

__version__ = "0.1.0"

__all__ = ["Answer", "Clara", "ClaraError", "Hit", "Memories", "RagPipeline", "Ranking"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m clara_jax.train --help` should not wait for JAX.
    if name == "ClaraError":
        from clara_jax.errors import ClaraError

        return ClaraError
    if name == "RagPipeline":
        from clara_jax.rag_pipeline import RagPipeline

        return RagPipeline
    if name == "Clara":
        from clara_jax.api import Clara

        return Clara
    if name in (*__all__, "Source"):  # the old name of Hit, which warns
        from clara_jax import results

        return getattr(results, name)
    raise AttributeError(f"module 'clara_jax' has no attribute {name!r}")
