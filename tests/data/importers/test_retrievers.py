"""Scores: BM25 against its formula written out, dense cosine against numpy, and both by name."""

import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from clara_jax.data.importers import retrievers
from clara_jax.data.importers.retrievers import BM25, Dense, open_retriever
from clara_jax.errors import ClaraError
from tests.data.importers.embedder import HashingEmbedder

DOCUMENTS = [
    "The fountain is in Rome. Rome is old.",
    "Oslo is the capital of Norway",
    "A fountain, a fountain! Fountain of Bergen; fountain",
    "rome ROME Rome oslo",
    "the of is",
    "Ünïcode Straße 5 in 1990",
]
QUESTIONS = ["Where is the fountain of Rome?", "rome rome oslo", "the", "nothing known", "straße 5"]


def brute_force(question, documents, stop_words, k1=1.2, b=0.75):
    """sum over the question's words of ln(1 + (n - f + 1/2) / (f + 1/2)) * t / (t + k1 (1 - b + b l / mean l))"""

    def words(text):
        return [word for word in re.findall(r"\w+", text.lower()) if word not in stop_words]

    split = [words(document) for document in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for document in split:
        counts, score = Counter(document), 0.0
        for word in words(question):
            frequency = sum(word in other for other in split)
            idf = math.log(1 + (len(split) - frequency + 0.5) / (frequency + 0.5))
            score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def test_bm25_is_its_formula():
    from bm25s.stopwords import STOPWORDS_EN

    found = list(BM25(DOCUMENTS).scores(QUESTIONS))
    expected = [brute_force(question, DOCUMENTS, STOPWORDS_EN) for question in QUESTIONS]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found[0].argmax() == 0 and found[4].argmax() == 5 and not found[2].any()


@pytest.mark.parametrize("documents", [["the of", "!"], ["fountain"]])
def test_bm25_of_almost_nothing(documents):
    for scores in BM25(documents).scores(["fountain", ""]):
        assert scores.shape == (len(documents),) and np.isfinite(scores).all()


def test_bm25s_leaves_jax_alone():
    code = (
        "import sys; from clara_jax.data.importers.retrievers import BM25; list(BM25(['port']).scores(['port']))"
        "; assert 'jax' not in sys.modules and 'jax.lax' not in sys.modules; import jax.lax; jax.lax.top_k"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dense_is_cosine(monkeypatch):
    monkeypatch.setattr(retrievers, "EMBEDDED_AT_ONCE", 2)
    embedder = HashingEmbedder()
    found = np.stack(list(Dense(DOCUMENTS, embedder).scores(QUESTIONS)))
    assert max(embedder.sizes) == 2
    documents, questions = HashingEmbedder().embed(DOCUMENTS), HashingEmbedder().embed(QUESTIONS)
    norms = np.linalg.norm(questions, axis=1)[:, None] * np.linalg.norm(documents, axis=1)
    np.testing.assert_allclose(found, questions @ documents.T / norms, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"), [(np.ones((1, 4)), "shape"), (np.ones(2), "shape"), (np.full((2, 4), np.nan), "finite")]
)
def test_embedders_that_err(vectors, message):
    class Wrong:
        def embed(self, texts):
            return vectors

    with pytest.raises(ClaraError, match=message):
        Dense(["a", "b"], Wrong())


def test_retrievers_by_name(monkeypatch):
    assert isinstance(open_retriever("bm25", DOCUMENTS), BM25)
    for name in ("dense", "dense:", "bm26"):
        with pytest.raises(ClaraError, match="must be bm25, minilm or dense:MODEL"):
            open_retriever(name, DOCUMENTS)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ClaraError, match="needs the package sentence-transformers: pip install"):
        open_retriever("dense:some/model", DOCUMENTS)


def test_sentence_transformers(monkeypatch):
    """The adapter asks the package for what it documents; the package itself, which needs PyTorch, is not installed."""

    class Model:
        def __init__(self, name):
            if name != "some/model":
                raise OSError("no such model")

        def encode(self, texts, show_progress_bar, convert_to_numpy):
            assert convert_to_numpy and not show_progress_bar
            return HashingEmbedder().embed(texts)

    class Package:
        SentenceTransformer = Model

    monkeypatch.setitem(sys.modules, "sentence_transformers", Package)
    (scores,) = open_retriever("dense:some/model", DOCUMENTS).scores([DOCUMENTS[1]])
    assert scores.argmax() == 1
    with pytest.raises(ClaraError, match="--retriever: other cannot be opened: no such model"):
        open_retriever("dense:other", DOCUMENTS)
