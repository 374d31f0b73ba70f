"""Subtrees that a stage starts afresh: as if none had trained them, once, and bit for bit the same on going on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from clara_jax.checkpoints import opening
from clara_jax.checkpoints.retention import checkpoints
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import flatten
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.config_parsing import from_json, to_json
from clara_jax.training.loop import run
from clara_jax.training.resume import check_same_config
from clara_jax.training.stopping import StopSignal
from tests import exports, tiny
from tests.configurations import stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return exports.bundle(tiny.write_base(tmp_path_factory.mktemp("base")))


def leaves(bundle):
    return {path: np.asarray(leaf) for path, leaf in flatten(bundle.params).items()}


def test_what_is_reset_is_fresh_and_all_else_as_it_was(bundle):
    found = opening.reset(bundle, ("lora/generator", "tokens/memory"), jax.random.key(5))
    before, after = leaves(bundle), leaves(found)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith(("lora/generator/", "tokens/memory"))}
    assert found.trained == ("lora/compressor", "lora/query_reasoner")
    kinds = {"a": [], "b": []}
    for path in changed - {"tokens/memory"}:
        kinds[path.split("/")[5]].append(np.abs(after[path]).max())
    assert min(kinds["a"]) > 0 and max(kinds["b"]) == 0, "an adapter that changes nothing yet"
    other = leaves(opening.reset(bundle, ("lora/generator",), jax.random.key(6)))
    assert any(not np.array_equal(after[path], other[path]) for path in changed - {"tokens/memory"})


def test_a_query_reasoner_starts_from_the_compressor_again(bundle):
    found = opening.reset(bundle, ("lora/query_reasoner",), jax.random.key(5))
    assert not found.ranks and bundle.ranks
    for path, leaf in leaves(found).items():
        np.testing.assert_array_equal(leaf, leaves(bundle)[path.replace("query_reasoner", "compressor")], err_msg=path)
    with pytest.raises(ClaraError, match="reset: there is no subtree 'lora/decoder'"):
        opening.reset(bundle, ("lora/decoder",), jax.random.key(5))
    assert opening.reset(bundle, (), jax.random.key(5)) is bundle


def test_the_field():
    assert stage("instruct").reset == ()
    assert stage("instruct", reset=["lora/generator", "tokens"]).reset == ("lora/generator", "tokens")
    for name in ("base", "base/embed", "lo"):
        with pytest.raises(ClaraError, match="instruct.reset is .*only subtrees of lora and tokens"):
            stage("instruct", reset=(name,))


def test_a_run_of_before_the_field_goes_on_without(tmp_path):
    config = RunConfig((stage("instruct"),), ModelSection("smollm2"))
    written = to_json(config)
    assert written["stages"][0].pop("reset") == []
    (tmp_path / "config.json").write_text(json.dumps(written))
    check_same_config(config, tmp_path)
    assert from_json(written) == config
    other = dataclasses.replace(config, stages=(stage("instruct", reset=("lora/generator",)),))
    with pytest.raises(ClaraError, match=r'instruct.reset is \["lora/generator"\], but the run .* begun with \[\]'):
        check_same_config(other, tmp_path)


def test_a_stage_resets_at_its_start_alone(tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)
    tiny.write_base(tmp_path / "base")
    tiny.write_records(tmp_path)
    optimizer = dict(batch_size=4, learning_rate=1e-2, warmup=0.0)

    def part(name, **fields):
        data = dict(train=(f"{tmp_path}/{name}.jsonl",))
        return stage(name, data=data, evaluation=dict(answers=0), saving=dict(every=1), **fields)

    config = RunConfig(
        (
            part("scp", optimizer=optimizer | dict(steps=1)),
            part(
                "instruct",
                optimizer=optimizer | dict(steps=2),
                topk=dict(k=1),
                reset=("lora/generator",),
                trains=("lora/compressor",),
            ),
        ),
        ModelSection(str(tmp_path / "base"), "float32"),
        ClaraConfig(doc_max_length=24, compress_rate=4, lora_rank=4, lora_dropout=0.0),
        mesh=(1, 1),
        reporting=dict(progress=False, tensorboard=False, show=0),
        saving=dict(keep=9),
    )
    whole = run(config, tmp_path / "run", StopSignal()).bundle
    assert whole.trained == ("lora/compressor", "tokens/memory")
    b = [leaf for path, leaf in leaves(whole).items() if path.startswith("lora/generator/") and "/b/" in path]
    assert b and not any(leaf.any() for leaf in b)
    first = opening.load(checkpoints(tmp_path / "run")[0], whole.mesh)
    assert "lora/generator" in first.trained

    shutil.rmtree(checkpoints(tmp_path / "run")[-1])
    log = json.loads((tmp_path / "run/run.json").read_text())
    del log["finished"]
    (tmp_path / "run/run.json").write_text(json.dumps(log))
    assert run(config, tmp_path / "run", StopSignal()).bundle.fingerprint() == whole.fingerprint()
