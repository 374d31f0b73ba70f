"""Runs, stores and checkpoints that an earlier version wrote open, answer as they did, and go on."""

import json
import shutil

import jax
import numpy as np
import pytest

from clara_jax import Clara, RagPipeline
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.retrieval.verifying import damaged_chunks
from clara_jax.text.documents import CorpusDocument, DocumentMetadata
from clara_jax.training.metrics import read_metrics
from tests.commands import run_train


@pytest.fixture
def expected(kept):
    return json.loads((kept / "expected.json").read_text())


@pytest.mark.parametrize("form", ["run", "compact", "peft", "released"])
def test_a_model_is_what_it_was(kept, expected, mesh, form):
    clara = Clara.load(kept / form, mesh=mesh, base=str(kept / "base"))
    assert clara.bundle.fingerprint() == expected["fingerprints"][form]


def test_a_store_answers_as_it_did(kept, expected, mesh):
    asked = expected["ask"]
    pipeline = RagPipeline.open(kept / "run", kept / "store", mesh=mesh, base=str(kept / "base"))
    answer = pipeline.answer(asked["question"], k=asked["selected"], sampling=Sampling(max_new_tokens=4))
    assert answer.text == asked["answer"]
    assert answer.log_probability == pytest.approx(asked["log_probability"], abs=1e-3)
    hits = answer.context.hits
    assert [hit.id for hit in hits] == [name for name, _ in asked["candidates"]]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in asked["candidates"]], atol=1e-4)


def test_a_store_goes_on_with_the_same_documents(kept, mesh):
    """Written before a store kept what is known of files: it gets the columns, and no document is there twice."""
    pipeline = RagPipeline.open(kept / "run", kept / "store", mesh=mesh, base=str(kept / "base"), batch_size=4)
    before = [one.id for one in pipeline.documents()[0]]
    with pytest.raises(ClaraError, match="'type' is no column; these are id, document"):
        pipeline.store.where("type = 'text'")
    assert pipeline.store.metadata(before[:1])[before[0]] == DocumentMetadata()
    stated = DocumentMetadata("/notes/a", "text", "2026-12-01T00:00:00Z", {"year": 1931})
    pipeline.add([CorpusDocument(before[0], "", "Another text.", "", metadata=stated)])
    assert [one.id for one in pipeline.documents()[0]] == before
    assert pipeline.store.where("fields.year = 1931") == [f"{before[0]}#0"]
    assert not damaged_chunks(pipeline.store) and pipeline.search("Where?", k=2)


def test_a_run_goes_on(kept, expected, monkeypatch, mesh):
    shutil.rmtree(kept / "run" / "checkpoints" / "01-end_to_end-00000004")
    monkeypatch.setattr(jax, "devices", lambda *arguments: list(mesh.devices.flat))
    assert run_train(monkeypatch, "--config", kept / "config.py", "--workdir", "run") == 0
    rows = read_metrics(kept / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["stage"] == "end_to_end" and "loss" in row]
    np.testing.assert_allclose(losses, expected["losses"], atol=1e-4)
    assert rows[-1]["finished"]
