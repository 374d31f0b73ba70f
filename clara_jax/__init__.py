"""CLaRa (Continuous Latent Reasoning, arXiv 2511.18659) in JAX and Flax.

One language model with three LoRA adapters compresses documents into a few memory vectors, ranks them for a question,
and answers from them. `Clara` is a model in Python, `RagPipeline` a model with a document store;
``python -m clara_jax.train`` trains.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clara_jax.api import Answer, Clara, Memories, Ranking, Source
    from clara_jax.errors import ClaraError
    from clara_jax.library import RagPipeline

# Only the tokenizers of transformers are used, so its advice to install torch does not apply.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Left to itself, XLA for TPUs multiplies with a kernel that is split over "data" piece by piece, and for each piece
# reads, rounds and writes the sum so far: twice a step's memory traffic, and less precise (docs/aot.md). Gathered as a
# whole, the kernel arrives while other work runs.
_GATHER = "--xla_jf_spmd_threshold_for_windowed_einsum_mib"
if _GATHER not in os.environ.get("LIBTPU_INIT_ARGS", ""):
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_GATHER}=1000000".strip()

__version__ = "0.1.0"

__all__ = ["Answer", "Clara", "ClaraError", "Memories", "RagPipeline", "Ranking", "Source"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m clara_jax.train --help` should not wait for JAX.
    if name == "ClaraError":
        from clara_jax.errors import ClaraError

        return ClaraError
    if name == "RagPipeline":
        from clara_jax.library import RagPipeline

        return RagPipeline
    if name in __all__:
        from clara_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'clara_jax' has no attribute {name!r}")
