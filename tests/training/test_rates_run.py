"""One model for several compress rates: trained in one stage, measured at each, opened at any."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.loop import run
from clara_jax.training.metrics import read_metrics
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stopping import StopSignal
from tests import tiny
from tests.configurations import changed

CLARA = ClaraConfig(24, 4, lora_rank=4, lora_dropout=0.0, different_mem_tokens=False, memory_map="affine")


def config(folder):
    pool = f"{folder}/pool.jsonl"
    stage = StageConfig(
        "autoencode",
        data=dict(train=(pool,), further_rates=(8, 24)),
        optimizer=dict(steps=4, batch_size=2),
        objective=dict(scaffold=1.0, mse_weight=0.0),
        evaluation=dict(data=(pool,), limit=2, controls=False),
    )
    model = ModelSection(str(folder / "base"), "float32")
    return RunConfig((stage,), model, CLARA, reporting=dict(progress=False, tensorboard=False, show=0), mesh=(1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    tiny.write_base(folder / "base")
    passages = [{"text": " ".join(tiny.document(i + j) for j in range(4))} for i in range(8)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:  # runs take all devices; tests have eight fake ones
        patch.setattr(jax, "devices", lambda *args: devices)
        run(config(folder), folder / "run", StopSignal())
        yield folder


def test_each_rate_is_trained_and_measured(folder):
    rows = read_metrics(folder / "run/metrics.jsonl")
    losses = [row for row in rows if "loss" in row]
    assert len(losses) == 4 and all(np.isfinite(row["loss"]) for row in losses)
    assert sum("compile_seconds" in row for row in losses) == 3, "a program for each rate"
    (last,) = [row for row in rows if row.get("step") == 4 and "eval_ce" in row]
    values = [last[f"eval_{rate}ce"] for rate in ("", "rate_8_", "rate_24_")]
    assert np.isfinite(values).all() and len(set(values)) == 3


def test_a_corpus_is_compressed_at_the_rate_that_is_chosen(folder):
    text = [tiny.document(0)]
    usual, high = Clara.load(folder / "run"), Clara.load(folder / "run", rate=24)
    assert usual.compress(text).array.shape == (1, 6, 64) and high.compress(text).array.shape == (1, 1, 64)
    assert usual.fingerprint != high.fingerprint
    assert high.answer(["Where?"], [text], k=1, max_new_tokens=2)[0].sources[0].text == text[0]
    with pytest.raises(ClaraError, match="compress_rate is 5"):
        Clara.load(folder / "run", rate=5)


def test_a_store_is_opened_at_its_rate(folder, tmp_path):
    made = RagPipeline.open(folder / "run", tmp_path / "s", create=True, rate=8)
    assert made.store.encoding.shape == (3, 64)
    again = RagPipeline.open(folder / "run", tmp_path / "s")
    assert again.clara.bundle.model.clara.compress_rate == 8
    with pytest.raises(ClaraError, match="holds memories of another compressor"):
        RagPipeline.open(folder / "run", tmp_path / "s", rate=24)
    assert len(DocumentStore.open(tmp_path / "s")) == 0


@pytest.mark.parametrize(
    "clara, stage, words",
    [
        ({}, {"further_rates": (4,)}, "above compress_rate 4"),
        ({}, {"further_rates": (5,)}, "divide doc_max_length 24"),
        ({}, {"further_rates": (8, 8)}, "named once"),
        ({}, {"further_rates": (0,)}, "at least 1"),
        ({}, {"pack": 64}, "rows of their own"),
        ({"different_mem_tokens": True}, {}, "one token for all places"),
    ],
)
def test_what_several_rates_need(folder, clara, stage, words):
    good = config(folder)
    with pytest.raises(ClaraError, match=f"further_rates.*{words}"):
        other = changed(good.stages[0], data=stage)
        dataclasses.replace(good, stages=(other,), clara=dataclasses.replace(CLARA, **clara))
