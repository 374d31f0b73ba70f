"""Compact copies: what comes back, in how many bytes, and what is refused."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from clara_jax import convert
from clara_jax.checkpoints import exporting, opening
from clara_jax.checkpoints.compact import rank_axis
from clara_jax.errors import ClaraError
from clara_jax.method.parameters import flatten
from clara_jax.model.quantization import dequantize, quantize
from clara_jax.model.sharding import make_mesh
from tests import exports, tiny

AFFINE = dataclasses.replace(exports.SMALL, memory_map="affine", different_mem_tokens=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a memory map that is not the identity."""
    bundle = exports.bundle(tiny.write_base(tmp_path_factory.mktemp("base")), AFFINE)
    vectors = {name: jax.numpy.arange(64.0) / (2 + i) for i, name in enumerate(bundle.params["tokens"]["map"])}
    tokens = bundle.params["tokens"] | {"map": vectors}
    return dataclasses.replace(bundle, params={**bundle.params, "tokens": tokens})


def adapters(bundle):
    return {name: np.asarray(leaf) for name, leaf in flatten(bundle.params).items() if not name.startswith("base/")}


def test_float32_comes_back_as_it_was(model, tmp_path):
    exporting.export_compact(model, tmp_path / "m", "float32")
    found = opening.load(tmp_path / "m", model.mesh)
    wanted = flatten(model.params)
    assert flatten(found.params).keys() == wanted.keys()
    for name, leaf in flatten(found.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted[name]), err_msg=name)
    assert found.fingerprint() == model.fingerprint()
    assert found.model == model.model and found.trained == model.trained and found.history == model.history
    assert found.end_ids == model.end_ids


@pytest.mark.parametrize("dtype, error, share", [("bfloat16", 2**-8, 0.5), ("int8", 0.5 / 127, 0.25)])
def test_fewer_bytes_hold_nearly_the_same(model, tmp_path, dtype, error, share):
    exporting.export_compact(model, tmp_path / "whole", "float32")
    exporting.export_compact(model, tmp_path / "m", dtype)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "m")}
    # Scales, names and vectors take some of what is saved: much in a model as small as this one.
    assert share < size["m"] / size["whole"] < share + 0.25
    found, wanted = adapters(opening.load(tmp_path / "m", model.mesh)), adapters(model)
    for name, leaf in wanted.items():
        assert np.abs(found[name] - leaf).max() <= 1.01 * error * np.abs(leaf).max(), name
    for name in ("scale", "center", "shift"):
        np.testing.assert_array_equal(found[f"tokens/map/{name}"], wanted[f"tokens/map/{name}"])


def test_a_query_reasoner_without_training_is_the_compressor_and_not_stored(model, tmp_path):
    untrained = dataclasses.replace(model, trained=("lora/compressor", "lora/generator", "tokens"))
    exporting.export_compact(untrained, tmp_path / "m", "float32")
    found = adapters(opening.load(tmp_path / "m", model.mesh))
    exporting.export_compact(model, tmp_path / "all", "float32")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("m", "all")]
    assert sizes[0] < 0.7 * sizes[1]
    for name, leaf in found.items():
        if name.startswith("lora/query_reasoner/"):
            np.testing.assert_array_equal(leaf, found[name.replace("query_reasoner", "compressor")])


def test_scales_are_one_for_each_rank_component():
    leaf = np.random.default_rng(0).normal(size=(3, 4, 90)).astype(np.float32) * np.arange(1, 5)[:, None]
    assert rank_axis(leaf) == 2 and rank_axis(leaf.swapaxes(1, 2)) == 1
    values, scales = quantize(leaf, rank_axis(leaf))
    assert values.dtype == np.int8 and scales.shape == (3, 4, 1)
    assert np.abs(dequantize(values, scales) - leaf).max(-1) == pytest.approx(np.abs(leaf).max(-1) / 254, rel=0.5)
    values, scales = quantize(np.zeros((2, 3, 5), np.float32), 2)
    assert not values.any() and not dequantize(values, scales).any()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "does not match its checksum"),
        (lambda folder: (folder / "model.json").write_text("[1]"), "holds no JSON object"),
        (lambda folder: (folder / "model.json").write_text("{"), "is not JSON"),
        (lambda folder: rewrite(folder, kind="other"), "\"kind\" 'other' is not"),
        (lambda folder: rewrite(folder, trained=None), '"trained" is missing or not of type list'),
        (lambda folder: rewrite(folder, prompt_version="999"), "prompts of version 999"),
        (lambda folder: rewrite(folder, tokenizer="0"), "another tokenizer"),
        (lambda folder: rewrite(folder, base={}), '"base" has no "name"'),
        (lambda folder: rewrite(folder, clara=dataclasses.asdict(AFFINE) | {"lora_rank": 2}), "must be"),
        (lambda folder: rewrite(folder, clara={"rank": 2}), "does not hold the method's numbers"),
        (lambda folder: rewrite(folder, precision="float7"), "float7"),
    ],
)
def test_a_damaged_copy_is_one_line(model, tmp_path, change, words):
    exporting.export_compact(model, tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(ClaraError, match=words) as caught:
        opening.load(tmp_path / "m", model.mesh)
    assert "\n" not in str(caught.value)


def rewrite(folder, **fields):
    """As another program might have written it: without the checksum."""
    about = json.loads((folder / "model.json").read_text())
    del about["checksum"]
    (folder / "model.json").write_text(json.dumps(about | fields))


def test_a_changed_number_is_not_taken_for_the_model(model, tmp_path):
    exporting.export_compact(model, tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 9.0'))
    with pytest.raises(ClaraError, match=f"^{file}: was changed since it was written"):
        opening.load(tmp_path / "m", model.mesh)
    rewrite(tmp_path / "m", clara=dataclasses.asdict(AFFINE) | {"missing_bos": "/mit"})
    with pytest.raises(ClaraError, match=f"^{file}: .*missing_bos is '/mit'"):
        opening.load(tmp_path / "m", model.mesh)


def test_another_base_is_refused(model, tmp_path):
    exporting.export_compact(model, tmp_path / "m")
    other = tiny.write_base(tmp_path / "other", rope_theta=1234.0)
    with pytest.raises(ClaraError, match="was trained on the base .* give the right base"):
        opening.load(tmp_path / "m", model.mesh, base=str(other))


def test_a_base_of_its_own_has_no_compact_form(tmp_path):
    config = json.loads((tiny.write_base(tmp_path / "base") / "config.json").read_text())
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    made = opening.from_scratch(config, tiny.tokenizer(), exports.SMALL, mesh, "float32")
    with pytest.raises(ClaraError, match="the base is part of this model"):
        exporting.export_compact(made, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_command(model, tmp_path, monkeypatch, capsys):
    model.save(tmp_path / "checkpoint", "instruct")
    arguments = ["--checkpoint", tmp_path / "checkpoint", "--format", "compact", "--dtype", "int8"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["convert", "export", *map(str, [*arguments, *more])])
        convert.main()

    run("--output", tmp_path / "m")
    assert "compact" in capsys.readouterr().out
    assert opening.load(tmp_path / "m", model.mesh).trained == model.trained
    with pytest.raises(ClaraError, match="is there already"):
        run("--output", tmp_path / "m")
    arguments[3] = "peft"
    with pytest.raises(ClaraError, match="int8 is for --format compact"):
        run("--output", tmp_path / "n")


def test_a_checkpoint_with_a_base_of_its_own_knows_the_base_files_end_tokens(tmp_path):
    """The base, whose generation_config.json names them, is not opened again."""
    base = tiny.write_base(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    made = opening.from_base(str(base), AFFINE, make_mesh(1, 1, devices=jax.devices()[:1]), "float32")
    assert 7 in made.end_ids
    for overrides in ((), ("base",)):
        dataclasses.replace(made, base_overrides=overrides).save(tmp_path / f"overrides{len(overrides)}", "scp")
        assert opening.load(tmp_path / f"overrides{len(overrides)}", made.mesh).end_ids == made.end_ids
