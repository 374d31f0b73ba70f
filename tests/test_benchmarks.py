"""Benchmarks of accelerators run from end to end where none is, on a model of no size."""

import json
import sys

import pytest

from benchmarks import accelerator
from clara_jax.method.stages import STAGES

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
