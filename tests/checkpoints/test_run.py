"""Run checkpoints: whole or absent, verified, and clear about what does not fit."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.checkpoints.run import (
    checkpoint_directory,
    latest_checkpoint,
    load_arrays,
    read_metadata,
    save_checkpoint,
    verify_checkpoint,
)
from clara_jax.errors import ClaraError
from tests.locations import ROOT


def tree():
    lora = {"q": {"a": jnp.arange(6.0).reshape(2, 3), "b": {"q": jnp.ones((3, 2), jnp.bfloat16)}}}
    params = {"lora": {"generator": lora}, "base": {}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {"params": params, "optimizer": optimizer.init(lora), "step": jnp.int32(7)}


def abstract(arrays):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.fixture
def saved(tmp_path):
    directory = checkpoint_directory(tmp_path, 1, "scp")
    save_checkpoint(directory, tree(), {"stage": "scp"}, lambda path: (path / "tokenizer.json").write_text("{}"))
    return directory


def test_round_trip(saved):
    assert saved.name == "01-scp"
    assert read_metadata(saved) == {"format_version": 1, "stage": "scp"}
    assert (saved / "tokenizer.json").read_text() == "{}"
    assert_equal(load_arrays(saved, abstract(tree())), tree())
    assert_equal(load_arrays(saved)["params"], tree()["params"])
    assert os.listdir(saved.parent) == ["01-scp"]


def test_only_some_subtrees(saved):
    params = {"params": tree()["params"]}
    assert_equal(load_arrays(saved, abstract(params), only=("params",)), params)
    assert_equal(load_arrays(saved, only=("params",)), params)
    with pytest.raises(ClaraError, match="holds no 'parms', only optimizer, params, step"):
        load_arrays(saved, only=("parms",))


def test_latest(tmp_path, saved):
    for name in ("02-instruct", "10-end_to_end", ".11-scp.partial", "notes", "x-y"):
        (saved.parent / name).mkdir()
    assert latest_checkpoint(tmp_path).name == "10-end_to_end"
    with pytest.raises(ClaraError, match="no checkpoint there"):
        latest_checkpoint(tmp_path / "elsewhere")


def test_a_failure_leaves_nothing_under_the_final_name(tmp_path):
    directory = checkpoint_directory(tmp_path, 1, "scp")

    def fail(path):
        (path / "half").write_text("x")
        raise RuntimeError("no tokenizer")

    with pytest.raises(RuntimeError, match="no tokenizer"):
        save_checkpoint(directory, tree(), {}, fail)
    assert os.listdir(directory.parent) == []
    # What a killed run left is no obstacle.
    (directory.parent / ".01-scp.partial" / "arrays").mkdir(parents=True)
    save_checkpoint(directory, tree(), {})
    assert os.listdir(directory.parent) == ["01-scp"]


def test_nothing_is_overwritten(saved):
    with pytest.raises(ClaraError, match="exists already"):
        save_checkpoint(saved, tree(), {"stage": "other"})
    assert read_metadata(saved)["stage"] == "scp"


def test_refused_by_the_file_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file" / "checkpoints" / "01-scp", tree(), {})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["params"]["lora"]["generator"]["q"].update(a=jnp.zeros((2, 4))),
         r"params/lora/generator/q/a is float32\[2, 3\] in the checkpoint, but float32\[2, 4\] in this model"),
        (lambda t: t["params"]["lora"]["generator"]["q"]["b"].update(q=jnp.zeros((3, 2))),
         r"generator/q/b/q is bfloat16\[3, 2\] in the checkpoint, but float32\[3, 2\] in this model"),
        (lambda t: t["params"].update(tokens=jnp.zeros(3)), "holds no array params/tokens, which this model needs"),
        (lambda t: t["params"]["lora"]["generator"]["q"].pop("a"),
         "holds an array params/lora/generator/q/a, which this model does not have"),
    ],
)  # fmt: skip
def test_another_model(saved, change, message):
    wanted = tree()
    change(wanted)
    with pytest.raises(ClaraError, match=message):
        load_arrays(saved, abstract(wanted))


def test_every_damaged_file_is_named(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], bytes([content[0] ^ 1]) + content[1:] if content else b"x"):
            if damaged == content:  # an empty file has no half
                continue
            path.write_bytes(damaged)
            with pytest.raises(ClaraError, match=path.name):
                load_arrays(saved)
        path.unlink()
        with pytest.raises(ClaraError, match=path.name):
            verify_checkpoint(saved)
        path.write_bytes(content)
    verify_checkpoint(saved)


def test_unknown_format_version(saved, monkeypatch):
    monkeypatch.setattr("clara_jax.checkpoints.run.FORMAT_VERSION", 2)
    with pytest.raises(ClaraError, match="format_version is 1, this program reads 2"):
        load_arrays(saved)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ClaraError, match="no such checkpoint directory"):
        read_metadata(tmp_path / "none")
    with pytest.raises(ClaraError, match="no checkpoint of clara_jax"):
        read_metadata(tmp_path)
    (tmp_path / "checksums.json").write_text(json.dumps({"clara.json": 3}))
    with pytest.raises(ClaraError, match="'clara.json' has no bytes and sha256"):
        read_metadata(tmp_path)


def test_a_checkpoint_of_eight_devices_opens_on_another_mesh(tmp_path):
    """Written 4 x 2, read 2 x 4 with the placement asked for, and whole on one device."""
    program = """
import sys, jax, jax.numpy as jnp, numpy as np
from clara_jax.checkpoints.run import load_arrays, save_checkpoint
def place(*shape):
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    return jax.NamedSharding(mesh, jax.P("data", "model"))
values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
save_checkpoint(sys.argv[1], {"x": jax.device_put(values, place(4, 2))}, {})
x = load_arrays(sys.argv[1], {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place(2, 4))})["x"]
assert x.sharding == place(2, 4), x.sharding
np.testing.assert_array_equal(x, values)
assert len(load_arrays(sys.argv[1])["x"].devices()) == 1
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    path = tmp_path / "checkpoint"
    subprocess.run([sys.executable, "-c", program, path], check=True, env=environment, cwd=ROOT, timeout=120)
    np.testing.assert_array_equal(load_arrays(path)["x"], np.arange(64.0).reshape(8, 8))
