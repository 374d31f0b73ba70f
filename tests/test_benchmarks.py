"""Benchmarks run from end to end on a model of no size, those of accelerators where none is."""

import json
import sys

import pytest

from benchmarks import accelerator, memory_bytes
from clara_jax.api import Clara
from clara_jax.input_pipeline.records import Record
from clara_jax.method.stages import STAGES
from clara_jax.retrieval.encodings import ENCODINGS
from tests import tiny
from tests.test_rag_pipeline import write_checkpoint

BASE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96}


@pytest.mark.slow
def test_the_accelerators_benchmark_times_every_case(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"num_attention_heads": 4, "num_key_value_heads": 2}))
    small = ["--rows=8", "--tokens=900", "--candidates=3", "--repeats=1", "--batches=1,3"]
    files = [f"--base-config={tmp_path / 'config.json'}", f"--json={tmp_path / 'out.json'}"]
    monkeypatch.setattr(sys, "argv", ["accelerator", *small, *files])
    accelerator.main()
    found = {row["case"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert list(found) == [*STAGES, "compress", "decode 1", "decode 3"]
    assert all(row.get("tokens/s/device", row.get("tokens/s", 0)) > 0 for row in found.values())
    assert found["scp"]["tokens"] == 8 * 900


def test_formats_of_memories_are_measured_beside_the_memories_as_they_are(mesh, tmp_path):
    clara = Clara.load(write_checkpoint(tmp_path, mesh), mesh=mesh, precision="float32")
    documents = tuple(tiny.document(i) for i in range(12))
    asked = [f"Where was number {i + 1} born?" for i in range(4)]
    records = [
        Record("question", documents[i : i + 6], (question,), ("Oslo",), ("Oslo",), (1,), "", "")
        for i, question in enumerate(asked)
    ]
    computed, *stored = memory_bytes.measure(clara, records, 4)
    assert [row["encoding"] for row in stored] == list(ENCODINGS)
    metrics = ("F1", "EM", "Recall@5")
    assert stored[0]["encoding"] == "float32"
    assert all(stored[0][f"{name} difference"] == [0, 0, 0] for name in metrics)
    assert 0 < computed["Recall@5"] <= 100 and computed["bytes"] is None
    sizes = {row["encoding"]: row["bytes"] for row in stored}
    assert sizes["float32"] == 2 * sizes["bfloat16"] and sizes["int4"] < sizes["int8"] < sizes["bfloat16"]
