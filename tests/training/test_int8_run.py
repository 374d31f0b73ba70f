"""Runs on a base in int8: what is refused, what is recorded, going on bit for bit, and what becomes of the model."""

import json
import shutil

import numpy as np
import pytest

from clara_jax.checkpoints import exporting, opening
from clara_jax.checkpoints.integrity import read_metadata
from clara_jax.checkpoints.retention import checkpoints
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.merging import merge_adapter
from clara_jax.method.parameters import flatten, unflatten
from clara_jax.model.quantization import quantized_kernels, wide_kernel
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.config_parsing import from_json, to_json
from clara_jax.training.loop import run
from clara_jax.training.resume import check_same_config
from clara_jax.training.stopping import StopSignal
from tests import tiny
from tests.configurations import stage

CLARA = ClaraConfig(doc_max_length=24, compress_rate=4, lora_rank=4, lora_dropout=0.1)
BASE = ("base", "lora/compressor", "lora/generator", "tokens/memory")


def config(place, *stages, start=None, **model):
    """Two steps of each stage over the tiny records."""

    def part(name, fields):
        return stage(
            name,
            data=dict(train=(f"{place}/{name}.jsonl",)),
            evaluation=dict(answers=0),
            optimizer=dict(steps=2, batch_size=4, accumulate=2, learning_rate=1e-2, warmup=0.0),
            topk=dict(k=1, candidates=3),
            saving=dict(every=1),
            **fields,
        )

    model = dict(base=str(place / "base"), precision="float32", quantization="int8") | model
    return RunConfig(
        tuple(part(name, fields) for name, fields in stages),
        ModelSection(**model),
        CLARA,
        mesh=(1, 1),
        initial_checkpoint=start,
        reporting=dict(progress=False, tensorboard=False, show=0),
        saving=dict(keep=9),
    )


def leaves(params):
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny.write_base(folder / "base")
    tiny.write_records(folder)
    return folder


@pytest.fixture(scope="module")
def trained(place, one_device):
    return run(config(place, ("scp", {}), ("end_to_end", {})), place / "run", StopSignal()).bundle


def test_what_is_refused(place):
    for trains, words in ((BASE, "scp.trains is "), (("base/lm_head",), "scp.trains is ")):
        with pytest.raises(ClaraError, match=words + ".*config.model.quantization=int8 freezes the base"):
            config(place, ("scp", dict(trains=trains)))
    with pytest.raises(ClaraError, match="config.model.quantization is 'int8'; it freezes the base, and a fresh one"):
        config(place, ("scp", {}), base="scratch")
    with pytest.raises(ClaraError, match="config.model.quantization is 'int4'.*one of none, int8"):
        config(place, ("scp", {}), quantization="int4")


def test_a_run_of_before_the_field_goes_on_without(place, tmp_path):
    plain = config(place, ("scp", {}), quantization="none")
    written = to_json(plain)
    assert written["model"].pop("quantization") == "none"
    (tmp_path / "config.json").write_text(json.dumps(written))
    check_same_config(plain, tmp_path)
    assert from_json(written) == plain
    with pytest.raises(ClaraError, match='config.model.quantization is "int8", but the run .* begun with "none"'):
        check_same_config(config(place, ("scp", {})), tmp_path)


def test_what_a_run_keeps(place, trained):
    kernels = {path: leaf for path, leaf in leaves(trained.params).items() if path.startswith("base/layers/")}
    assert {leaf.dtype.name for path, leaf in kernels.items() if path.endswith("/values")} == {"int8"}
    assert len(quantized_kernels(kernels)) == 7
    # The record: the run's, each checkpoint's, each finished stage's. The base is not stored, but named.
    assert json.loads((place / "run/config.json").read_text())["model"]["quantization"] == "int8"
    newest = checkpoints(place / "run")[-1]
    assert read_metadata(newest)["quantization"] == "int8"
    assert [entry["quantization"] for entry in trained.history] == ["int8"] * 2
    assert "base" not in load_arrays(newest)
    found = opening.load(place / "run", trained.mesh)
    assert_same(leaves(found.params), leaves(trained.params))
    assert found.model.quantization == "int8" and found.fingerprint() == trained.fingerprint()
    plain = opening.load(place / "run", trained.mesh, quantization="none")
    assert (
        plain.fingerprint() != found.fingerprint() and plain.compressor_fingerprint() != found.compressor_fingerprint()
    )
    assert not quantized_kernels(flatten(plain.params))


def test_going_on_is_bit_for_bit(place, trained):
    cut = place / "cut"
    shutil.copytree(place / "run", cut)
    for path in checkpoints(cut)[1:]:  # killed after the first step
        shutil.rmtree(path)
    log = json.loads((cut / "run.json").read_text())
    del log["finished"]
    (cut / "run.json").write_text(json.dumps(log))
    again = run(config(place, ("scp", {}), ("end_to_end", {})), cut, StopSignal()).bundle
    assert_same(leaves(again.params), leaves(trained.params))
    for one, other in zip(checkpoints(cut), checkpoints(place / "run"), strict=True):
        assert one.name == other.name
        assert_same(leaves(load_arrays(one)), leaves(load_arrays(other)))


def test_a_base_that_was_trained_goes_on_in_int8(place, one_device, tmp_path):
    """As of a model from scratch: its checkpoint holds the base, and then holds bytes."""
    start = run(config(place, ("scp", dict(trains=BASE)), quantization="none"), tmp_path / "start", StopSignal()).bundle
    later = config(place, ("instruct", {}), base="", start=str(tmp_path / "start"))
    found = run(later, tmp_path / "later", StopSignal()).bundle
    stored = flatten(load_arrays(checkpoints(tmp_path / "later")[-1]))
    for kernel in quantized_kernels(flatten(found.params)):
        assert stored[f"{kernel}/values"].dtype == np.int8 and kernel not in stored
        wide = np.asarray(flatten(start.params)[kernel])
        parts = {part: stored[f"{kernel}/{part}"] for part in ("values", "scales")}
        assert np.abs(np.asarray(wide_kernel(parts)) - wide).max() <= np.abs(wide).max() / 250
    assert_same(leaves(opening.load(tmp_path / "later", found.mesh).params), leaves(found.params))
    with pytest.raises(ClaraError, match="holds its base's kernels as int8.*config.model.quantization=int8"):
        opening.load(tmp_path / "later", found.mesh, quantization="none")
    quantized = quantized_kernels(flatten(opening.fresh(found).params))
    assert len(quantized) == 7, "the baseline of fresh parameters is in int8, too"


def test_exports(trained, tmp_path):
    with pytest.raises(ClaraError, match="trained on its base in int8.*--format peft"):
        exporting.export_released(trained, tmp_path / "released")
    assert not (tmp_path / "released").exists()
    for export in (exporting.export_compact, exporting.export_peft):
        export(trained, tmp_path / export.__name__, "float32")
        found = opening.load(tmp_path / export.__name__, trained.mesh)
        assert found.model.quantization == "int8"
        assert_same(leaves(found.params), leaves(trained.params))
    exporting.export_merged(trained, tmp_path / "merged", dtype="float32")
    tensors, base = (
        open_tensors(tmp_path / "merged"),
        merge_adapter(trained.model, trained.params, "generator", trained.mesh),
    )
    up = np.asarray(base["layers"]["mlp"]["up"]["kernel"]["up"])
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.up_proj.weight"].T, up[1])
    low = trained.params["lora"]["generator"]["layers"]["mlp"]["up"]
    wide = wide_kernel(unflatten(flatten(trained.params))["base"]["layers"]["mlp"]["up"]["kernel"]["up"])
    added = np.einsum("LER,LRF->LEF", low["a"], low["b"]["up"]) * CLARA.lora_scale
    np.testing.assert_allclose(up, wide + added, atol=1e-6)
