"""Packages that parts of the program need and the core does without: which extra of the package installs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from clara_jax.errors import ClaraError

# The extra (pyproject.toml) of each package that a module imports.
OF = {
    "aiohttp": "synthesis",
    "aiolimiter": "synthesis",
    "bm25s": "data",
    "datasketch": "data",
    "docx": "documents",
    "fastapi": "serve",
    "haystack": "haystack",
    "httpx": "rag",
    "json_repair": "synthesis",
    "lance": "shards",
    "lancedb": "rag",
    "langchain_core": "langchain",
    "llama_index": "llamaindex",
    "lxml": "documents",
    "mcp": "mcp",
    "mlflow": "mlflow",
    "openai": "synthesis",
    "pptx": "documents",
    "prometheus_client": "serve",
    "py3langid": "synthesis",
    "pyarrow": "rag",
    "pypdf": "documents",
    "pysbd": "documents",
    "ray": "ray",
    "rouge_score": "eval",
    "sklearn": "eval",
    "starlette": "serve",
    "tenacity": "rag",
    "trackio": "trackio",
    "trafilatura": "documents",
    "uvicorn": "serve",
    "wandb": "wandb",
    "yaml": "documents",
}


@contextlib.contextmanager
def asked_for() -> Iterator[None]:
    """Turn the import error of a package of ours that is not installed into one line that says what installs it.

    Raises:
      ClaraError: in the place of that error; any other passes.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OF:
            raise
        raise ClaraError(
            f"{package} is not installed; pip install 'clara_jax[{OF[package]}]', or in a checkout pip install "
            f"'.[{OF[package]}]'"
        ) from None
