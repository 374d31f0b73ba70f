"""Run checkpoints: whole or absent, verified, thinned out, and clear about what does not fit."""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.checkpoints import retention, run
from clara_jax.checkpoints.integrity import read_metadata, verify_checkpoint
from clara_jax.checkpoints.retention import (
    best_checkpoint,
    checkpoint_directory,
    checkpoints,
    latest_checkpoint,
    newest_intact,
)
from clara_jax.checkpoints.run import CheckpointWriter, load_arrays, save_checkpoint
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
    directory = checkpoint_directory(tmp_path, 1, "scp", 7)
    save_checkpoint(directory, tree(), {"stage": "scp"}, lambda path: (path / "tokenizer.json").write_text("{}"))
    return directory


def test_round_trip(saved):
    assert saved.name == "01-scp-00000007"
    assert read_metadata(saved) == {"format_version": 1, "stage": "scp"}
    assert (saved / "tokenizer.json").read_text() == "{}"
    assert_equal(load_arrays(saved, abstract(tree())), tree())
    assert_equal(load_arrays(saved)["params"], tree()["params"])
    assert os.listdir(saved.parent) == ["01-scp-00000007"]


def test_only_some_subtrees(saved):
    params = {"params": tree()["params"]}
    assert_equal(load_arrays(saved, abstract(params), only=("params",)), params)
    assert_equal(load_arrays(saved, only=("params",)), params)
    with pytest.raises(ClaraError, match="holds no 'parms', only optimizer, params, step"):
        load_arrays(saved, only=("parms",))


def test_order(tmp_path, saved):
    names = ("01-scp-00000020", "02-end_to_end-00000003", "10-scp-00000001", "10-scp-123456789")
    for name in (*names, ".11-scp-00000001.partial", ".11-scp-00000002.removed", "notes", "x-y-1", "12-scp"):
        (saved.parent / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [saved.name, *names]
    assert checkpoints(tmp_path / "elsewhere") == []


def test_latest(tmp_path, saved, capsys):
    later = [checkpoint_directory(tmp_path, 2, "instruct", step) for step in (9, 10)]
    for path in later:
        shutil.copytree(saved, path)
    assert latest_checkpoint(tmp_path) == later[1]
    assert capsys.readouterr().err == ""
    (later[1] / "tokenizer.json").unlink()
    (later[0] / "tokenizer.json").write_text("{]")
    assert latest_checkpoint(tmp_path) == saved
    assert capsys.readouterr().err == (
        f"warning: checkpoint 02-instruct-00000010 is damaged ({later[1]}/tokenizer.json: missing); using the one "
        "before, 01-scp-00000007\n"
        f"warning: checkpoint 02-instruct-00000009 is damaged ({later[0]}/tokenizer.json: does not match its "
        "checksum); using the one before, 01-scp-00000007\n"
    )
    (saved / "clara.json").unlink()
    assert newest_intact(tmp_path) is None
    assert capsys.readouterr().err.count("and no earlier one is intact\n") == 3
    with pytest.raises(ClaraError, match=r"every checkpoint there is damaged \(3 of them\)"):
        latest_checkpoint(tmp_path)
    with pytest.raises(ClaraError, match="no checkpoint there"):
        latest_checkpoint(tmp_path / "elsewhere")


def test_a_failure_leaves_nothing_under_the_final_name(tmp_path):
    directory = checkpoint_directory(tmp_path, 1, "scp", 7)

    def fail(path):
        (path / "half").write_text("x")
        raise RuntimeError("no tokenizer")

    with pytest.raises(RuntimeError, match="no tokenizer"):
        save_checkpoint(directory, tree(), {}, fail)
    assert os.listdir(directory.parent) == []
    # What a killed run left is no obstacle.
    (directory.parent / ".01-scp-00000007.partial" / "arrays").mkdir(parents=True)
    save_checkpoint(directory, tree(), {})
    assert os.listdir(directory.parent) == ["01-scp-00000007"]


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


def test_fifty_random_corruptions(tmp_path, saved, capsys):
    corrupted_checkpoints(tmp_path, saved, capsys, 50)


def corrupted_checkpoints(tmp_path, saved, capsys, count):
    """Whatever happens to the newest checkpoint, it is never loaded, and said once."""
    newest = checkpoint_directory(tmp_path, 1, "scp", 8)
    shutil.copytree(saved, newest)
    rng = random.Random(0)
    for _ in range(count):
        with one_file_damaged(newest, rng) as what:
            assert newest_intact(tmp_path) == saved, what
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and lines[0].startswith("warning: checkpoint 01-scp-00000008 is damaged"), lines
            with pytest.raises(ClaraError):
                load_arrays(newest)
    assert newest_intact(tmp_path) == newest


@contextlib.contextmanager
def one_file_damaged(folder, rng):
    """A bit is turned, the end is cut off, some is zeros, or the file is gone; in the block, which gets (file, how)."""
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = file.read_bytes()
    damage = rng.choice([flip, truncate, zero, None]) if content else None
    while damage is not None and (damaged := damage(content, rng)) == content:
        pass  # zeros over zeros
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damaged)
    try:
        yield file, damage
    finally:
        file.write_bytes(content)


def flip(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def truncate(content, rng):
    return content[: rng.randrange(len(content))]


def zero(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


def test_any_byte_of_the_checksums_matters(saved):
    file = saved / "checksums.json"
    content, rng = file.read_bytes(), random.Random(0)
    for at in range(0, len(content), 5):
        bit = 1 << rng.randrange(8)
        file.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        with pytest.raises(ClaraError):
            read_metadata(saved) and verify_checkpoint(saved)
    file.write_bytes(content.rstrip())
    with pytest.raises(ClaraError, match="checksums.json: was changed since it was written"):
        verify_checkpoint(saved)


def test_unknown_format_version(tmp_path, saved, monkeypatch):
    monkeypatch.setattr("clara_jax.checkpoints.integrity.FORMAT_VERSION", 2)
    for read in (lambda: load_arrays(saved), lambda: newest_intact(tmp_path), lambda: latest_checkpoint(tmp_path)):
        with pytest.raises(ClaraError, match="format_version is 1, this program reads 2"):
            read()


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

    def place(*shape):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
        return jax.NamedSharding(mesh, jax.P("data", "model"))

    path = tmp_path / "checkpoint"
    values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    save_checkpoint(path, {"x": jax.device_put(values, place(4, 2))}, {})
    x = load_arrays(path, {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place(2, 4))})["x"]
    assert x.sharding == place(2, 4), x.sharding
    np.testing.assert_array_equal(x, values)
    whole = load_arrays(path)["x"]
    assert len(whole.devices()) == 1
    np.testing.assert_array_equal(whole, values)


# --- saving while training goes on ---


def arrays_of(step):
    return {"lora": {"a": jnp.full((64, 32), step, jnp.float32)}, "optimizer": {"mu": jnp.full(5, -step, jnp.bfloat16)}}


def names(run_dir):
    return [path.name.removeprefix("0") for path in checkpoints(run_dir)]


@pytest.mark.parametrize("devices", [1, 8])
def test_saved_while_the_next_step_takes_the_buffers(tmp_path, devices):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    place = [jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",))]
    arrays = {
        "whole": jax.device_put(jnp.arange(1e6).reshape(1000, 1000), place[0]),
        "split": jax.device_put(jnp.arange(2e6).reshape(1000, 2000), place[1]),
    }
    expected = jax.device_get(jax.tree.map(jnp.copy, arrays))
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(path):
        begun.set()
        assert go_on.wait(30)

    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 1, arrays, {}, hold_up)
        arrays = jax.block_until_ready(step(arrays))
        assert begun.wait(60)
        assert names(tmp_path) == []  # it did not wait for the disk
        go_on.set()
        writer.wait()
        loaded = load_arrays(newest_intact(tmp_path))
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_one_save_after_the_other(tmp_path):
    with CheckpointWriter(tmp_path, keep=9) as writer:
        for step in range(3):
            writer.save(1, "scp", step, arrays_of(step), {"step": step}, lambda path: (path / "extra").write_text("x"))
            assert len(checkpoints(tmp_path)) >= step
        writer.save(1, "scp", 3, arrays_of(3), {"step": 3}, wait=True)
        assert len(checkpoints(tmp_path)) == 4
        writer.save(2, "instruct", 1, arrays_of(4), {"step": 4})
    for step, path in enumerate(checkpoints(tmp_path)):
        assert read_metadata(path)["step"] == step
        assert_equal(load_arrays(path), arrays_of(step))
        assert_equal(load_arrays(path, abstract({"lora": arrays_of(0)["lora"]}), only=("lora",)), {
            "lora": arrays_of(step)["lora"]
        })  # fmt: skip


def test_what_is_kept(tmp_path):
    losses = [0.5, 0.2, 0.9, 0.2, 0.8, 0.7]
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step, loss in enumerate(losses):
            writer.save(1, "scp", step, arrays_of(0), {"evaluation": {"loss": loss, "exact_match": loss}})
        writer.wait()
        # The newest two and the newer of the best.
        assert names(tmp_path) == ["1-scp-00000003", "1-scp-00000004", "1-scp-00000005"]
        writer.save(1, "scp", 6, arrays_of(0), {"finished": True})
        for step in range(3):
            writer.save(2, "instruct", step, arrays_of(0), {"evaluation": {} if step else {"loss": 1.0}})
        writer.save(3, "end_to_end", 1, arrays_of(0), {}, wait=True)
        kept = ["1-scp-00000003", "1-scp-00000006", "2-instruct-00000000", "2-instruct-00000002"]
        assert names(tmp_path) == [*kept, "3-end_to_end-00000001"]
    assert best_checkpoint(tmp_path, "scp", "loss").name == "01-scp-00000003"
    assert best_checkpoint(tmp_path, "instruct", "exact_match") is None
    with CheckpointWriter(tmp_path, keep=1, best=None) as writer:
        writer.save(3, "end_to_end", 2, arrays_of(0), {})
    assert names(tmp_path) == ["1-scp-00000006", "3-end_to_end-00000002"]
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".")]
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointWriter(tmp_path, keep=0)


@pytest.mark.parametrize(
    "metric, best", [("loss", 1), ("loss_no_memory", 1), ("ce", 1), ("mse", 1), ("contrastive", 1), ("exact_match", 2),
                     ("recall@1", 2)]
)  # fmt: skip
def test_which_is_best(tmp_path, metric, best):
    with CheckpointWriter(tmp_path) as writer:
        for step, value in ((0, 0.5), (1, 0.1), (2, 0.9)):
            writer.save(1, "scp", step, {"x": jnp.zeros(1)}, {"evaluation": {metric: value}})
    found = best_checkpoint(tmp_path, "scp", metric)
    assert found == checkpoint_directory(tmp_path, 1, "scp", best)
    (found / "clara.json").write_text("{}")  # not readable any more
    assert best_checkpoint(tmp_path, "scp", metric) == checkpoint_directory(tmp_path, 1, "scp", 0)


def test_a_run_that_goes_on_from_further_back(tmp_path, capsys):
    """A damaged newest one neither counts as the newest kept, nor stands in the way of what replaces it."""
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, "scp", 10, arrays_of(10), {})
    shutil.copytree(tmp_path, tmp_path / "copy")
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, "scp", 20, arrays_of(20), {})
    shutil.copytree(tmp_path / "copy", tmp_path, dirs_exist_ok=True)
    (checkpoint_directory(tmp_path, 1, "scp", 20) / "clara.json").write_text("{")
    assert newest_intact(tmp_path) == checkpoint_directory(tmp_path, 1, "scp", 10)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, "scp", 15, arrays_of(15), {}, wait=True)
        assert names(tmp_path) == ["1-scp-00000015", "1-scp-00000020"]
        assert newest_intact(tmp_path) == checkpoint_directory(tmp_path, 1, "scp", 15)
        capsys.readouterr()
        writer.save(1, "scp", 20, arrays_of(20), {}, wait=True)
        # An intact one as well: a stage's last step is saved again when the stage has finished.
        writer.save(1, "scp", 20, arrays_of(20), {"finished": True}, wait=True)
    assert names(tmp_path) == ["1-scp-00000020"]
    assert read_metadata(newest_intact(tmp_path))["finished"] is True
    assert_equal(load_arrays(newest_intact(tmp_path)), arrays_of(20))
    assert capsys.readouterr().err == ""


def test_killed_between_the_two_renames_of_a_replacement(tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 1, arrays_of(1), {})
    folder = tmp_path / "checkpoints"
    (folder / "01-scp-00000001").rename(folder / ".01-scp-00000001.replaced")
    (folder / ".01-scp-00000001.partial").mkdir()
    assert_equal(load_arrays(newest_intact(tmp_path)), arrays_of(1))
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 2, arrays_of(2), {})
    assert sorted(os.listdir(folder)) == ["01-scp-00000001", "01-scp-00000002"]


def test_leftovers_are_cleared_at_the_next_save(tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 1, arrays_of(1), {})
        writer.wait()
        folder = tmp_path / "checkpoints"
        for suffix in ("partial", "removed", "replaced"):
            shutil.copytree(folder / "01-scp-00000001", folder / f".01-scp-00000001.{suffix}")
        assert names(tmp_path) == ["1-scp-00000001"]
        writer.save(1, "scp", 2, arrays_of(2), {})
    assert sorted(os.listdir(folder)) == ["01-scp-00000001", "01-scp-00000002"]


# --- what goes wrong meanwhile ---


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_as_rust_does(*_):
    raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize("where", ["extra", "tokenizer", "disk", "rename"])
def test_a_full_disk_is_said_at_the_next_call(tmp_path, monkeypatch, where):
    writer = CheckpointWriter(tmp_path, keep=1)
    for step in (1, 2):
        writer.save(1, "scp", step, arrays_of(step), {}, wait=True)
    if where == "disk":
        monkeypatch.setattr(run, "sync", refuse)
    if where == "rename":
        monkeypatch.setattr(os, "rename", refuse)
    write_extra = {"extra": refuse, "tokenizer": refuse_as_rust_does}.get(where)
    expected = "01-scp-00000003: cannot write the checkpoint: No space left on device; earlier checkpoints are whole"
    for call in (writer.wait, lambda: writer.save(1, "scp", 4, arrays_of(4), {}), writer.close):
        writer.save(1, "scp", 3, arrays_of(3), {}, write_extra)
        with pytest.raises(ClaraError, match=expected):
            call()
        writer.wait()  # said once
    assert os.listdir(tmp_path / "checkpoints") == ["01-scp-00000002"]
    assert_equal(load_arrays(newest_intact(tmp_path)), arrays_of(2))


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, capsys):
    with pytest.raises(KeyError, match="the loss"), CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 1, arrays_of(1), {}, refuse)
        raise KeyError("the loss")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/checkpoints/01-scp-00000001: cannot write the checkpoint: No space left on device; "
        "earlier checkpoints are whole\n"
    )
    with pytest.raises(ClaraError, match="No space left"), CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", 1, arrays_of(1), {}, refuse)


def test_metadata_that_json_cannot_hold(tmp_path):
    with CheckpointWriter(tmp_path) as writer, pytest.raises(ClaraError, match="metadata cannot be written as JSON"):
        writer.save(1, "scp", 1, arrays_of(1), {"evaluation": {"loss": float("nan")}})
    assert checkpoints(tmp_path) == []


def test_what_cannot_be_removed_is_said(tmp_path, monkeypatch):
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, "scp", 1, arrays_of(1), {}, wait=True)
        monkeypatch.setattr(retention, "_remove", refuse)
        writer.save(1, "scp", 2, arrays_of(2), {})
        with pytest.raises(ClaraError, match="01-scp-00000001: cannot remove this old checkpoint: No space"):
            writer.wait()
    assert names(tmp_path) == ["1-scp-00000001", "1-scp-00000002"]


FILL = """
import resource, signal, sys, jax
from clara_jax import command
from clara_jax.checkpoints.run import CheckpointWriter
def main():
    with CheckpointWriter(sys.argv[1]) as writer:
        for step in range(8):
            arrays = {"x": jax.random.normal(jax.random.key(step), (250 + 750 * (step > 2), 1000))}
            if step == 3 and sys.argv[2] == "limit":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000,) * 2)
            writer.save(1, "scp", step, arrays, {"step": step})
command.run(main)
"""


# Mounts a small disk on $1 that only the command sees, runs the command, and copies what the disk holds to $2.
ON_SMALL_DISK = """
disk=$1 copy=$2; shift 2
mount -t tmpfs -o size=5m none "$disk" || exit 77
"$@"
code=$?
cp -r "$disk" "$copy"
exit $code
"""


@pytest.mark.parametrize("how, reason", [("limit", "File too large"), ("disk", "No space left on device")])
def test_a_disk_that_fills_up_for_real(tmp_path, how, reason):
    """The writes of Orbax fail: one line, exit code 2, earlier checkpoints whole."""
    run_dir, copy = tmp_path / "run", tmp_path / "copy"
    run_dir.mkdir()
    command, found = [sys.executable, "-c", FILL, run_dir, how], run_dir
    if how == "disk":
        small_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_SMALL_DISK, "sh", run_dir, copy]
        if shutil.which("unshare") is None or subprocess.run([*small_disk, "true"], capture_output=True).returncode:
            pytest.skip("may not mount a small disk")
        shutil.rmtree(copy)
        command, found = [*small_disk, *command], copy
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    whole = checkpoints(found)
    assert whole and sorted(os.listdir(found / "checkpoints")) == [path.name for path in whole]
    failed = run_dir / "checkpoints" / f"01-scp-{read_metadata(whole[-1])['step'] + 1:08d}"
    line = f"error: {failed}: cannot write the checkpoint: {reason}; earlier checkpoints are whole\n"
    # XLA of the lowest jaxlib allowed logs more where it loads a program that was kept.
    said = [printed for printed in result.stderr.splitlines(keepends=True) if "cpu_aot_loader" not in printed]
    assert (result.returncode, said) == (2, [line])
    for path in whole:
        verify_checkpoint(path)


def test_killed_in_any_line(tmp_path, monkeypatch):
    """What lies on disk behind every change that a save makes: never a damaged checkpoint, never none, never an older
    one than before."""
    run_dir, states = tmp_path / "run", []

    def keep_state(function):
        def wrapped(*arguments, **options):
            result = function(*arguments, **options)
            if threading.current_thread().name.startswith("checkpoints"):  # not Orbax's
                states.append(tmp_path / f"state {len(states)}")
                shutil.copytree(run_dir, states[-1])
            return result

        return wrapped

    with CheckpointWriter(run_dir, keep=1) as writer:
        writer.save(1, "scp", 0, arrays_of(0), {"place": 0}, wait=True)
        for owner, name in ((os, "rename"), (os, "unlink"), (os, "rmdir"), (type(run_dir), "write_text")):
            monkeypatch.setattr(owner, name, keep_state(getattr(owner, name)))
        # Commits, removes the one before, and replaces one.
        for place, step in ((1, 1), (2, 1)):
            writer.save(1, "scp", step, arrays_of(step), {"place": place}, lambda path: (path / "x").write_text("x"))
    monkeypatch.undo()
    places = []
    for state in states:
        for path in checkpoints(state):
            verify_checkpoint(path)
        places.append(read_metadata(newest_intact(state))["place"])
    assert places == sorted(places) and set(places) == {0, 1, 2}, places
    for state in states[::8]:
        with CheckpointWriter(state, keep=1) as writer:
            writer.save(1, "scp", 2, arrays_of(2), {})
        assert os.listdir(state / "checkpoints") == ["01-scp-00000002"]


SAVE_ON_AND_ON = """
import sys, numpy as np
from clara_jax.checkpoints.integrity import read_metadata
from clara_jax.checkpoints.retention import checkpoints, newest_intact
from clara_jax.checkpoints.run import CheckpointWriter
newest = newest_intact(sys.argv[1])
step = read_metadata(newest)["step"] if newest else 0
with CheckpointWriter(sys.argv[1], keep=2, best=None) as writer:
    print(f"resumed {step}", flush=True)
    while True:
        # Each step is saved twice, so that replacing is interrupted as well.
        for finished in (False, True):
            arrays = {"x": np.full((300, 1000), step), "y": {"z": np.arange(4.0) + step}}
            writer.save(1, "scp", step, arrays, {"step": step}, lambda path: (path / "extra").write_text(str(step)))
        writer.wait()
        print(step, flush=True)
        step += 1
"""


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_any_moment(tmp_path, capsys, kills):
    rng, last = random.Random(0), 0
    for _ in range(kills):
        command = [sys.executable, "-c", SAVE_ON_AND_ON, tmp_path]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            resumed = process.stdout.readline()
            assert resumed == f"resumed {last}\n", process.stderr.read()
            process.stdout.readline()
            threading.Event().wait(rng.random())
            process.kill()
            told, errors = process.communicate()
        newest = newest_intact(tmp_path)
        last = read_metadata(newest)["step"]
        assert capsys.readouterr().err == errors == ""
        assert last >= int((told.split() or [0])[-1])  # nothing that was said to be saved is lost
        loaded = load_arrays(newest)
        np.testing.assert_array_equal(loaded["x"], np.full((300, 1000), last))
        np.testing.assert_array_equal(loaded["y"]["z"], np.arange(4.0) + last)
        assert (newest / "extra").read_text() == str(last)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, "scp", last + 1, arrays_of(0), {})
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".")]
