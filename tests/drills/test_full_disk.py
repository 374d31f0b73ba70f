"""A disk that is full, for real: the command ends with one line, nothing half-written has its name, and the same
command goes on once there is room, to what it would have written anyway.

``python -m pytest -n 0 -s -m drill tests/drills/test_full_disk.py``. The fast tests have such disks for checkpoints
alone (`tests/checkpoints/test_run.py`), and files that may not grow for data sets.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clara_jax.checkpoints.integrity import verify_checkpoint
from clara_jax.checkpoints.retention import checkpoints
from clara_jax.data.builders import RecordSource
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import read_records
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.verifying import damaged_chunks
from tests.data.builders.files import questions, write
from tests.locations import ROOT
from tests.test_rag_pipeline import said, versions, write_checkpoint
from tests.test_resume import CODE, CONFIG, assert_equal_runs
from tests.tiny import write_place

pytestmark = pytest.mark.drill
# Mounts a disk of $3 bytes on $1 that only these commands see, runs the command there and, unless that went well, gives
# the disk room and runs the command again. In $2: what the disk held after each, what they said, and their exit codes.
ON_A_SMALL_DISK = """
disk=$1 told=$2 size=$3; shift 3
mount -t tmpfs -o size=$size none "$disk" || exit 77
for turn in full room; do
    "$@" > "$told/$turn.out" 2> "$told/$turn.err"
    code=$?
    echo $code > "$told/$turn.code"
    cp -a "$disk" "$told/$turn"
    [ $code = 0 ] && exit
    mount -o remount,size=1g "$disk"
done
"""


def on_a_small_disk(tmp_path, number, size, command):
    """The folder with what became of a command."""
    disk, told = tmp_path / "disk", tmp_path / f"told-{number}"
    disk.mkdir(exist_ok=True)
    told.mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", disk, told]
    done = subprocess.run([*isolated, str(size), *command], cwd=ROOT, env=ONE_DEVICE, timeout=600)
    assert done.returncode == 0
    return told


ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(scope="module", autouse=True)
def mounts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mounts")
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", folder]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")


def check(tmp_path, command, tries, half, whole):
    """Tries disks of random sizes, on each of which the command finds no room.

    Args:
      command: what is written lies in ``disk`` of tmp_path.
      half: is called with the folder as a full disk left it, whole: with the one that the same command left then, and
        the one on a disk with room from the beginning.
    """
    rng = random.Random(tries)
    at_once = on_a_small_disk(tmp_path, "whole", 1 << 30, command) / "full"
    assert (at_once.parent / "full.code").read_text() == "0\n", (at_once.parent / "full.err").read_text()
    size = sum(file.stat().st_size for file in at_once.rglob("*") if file.is_file())
    for number in range(tries):
        share = rng.uniform(0.02, 0.98)
        told = on_a_small_disk(tmp_path, number, max(4096, int(share * size)), command)
        lines = (told / "full.err").read_text() + (told / "full.out").read_text()
        errors = [line for line in lines.replace("\r", "\n").splitlines() if "error: " in line]
        assert (told / "full.code").read_text() == "2\n" and len(errors) == 1, (share, lines)
        assert "No space left" in errors[0] and "Traceback" not in lines, (share, lines)
        half(told / "full")
        again = (told / "room.err").read_text() + (told / "room.out").read_text()
        assert (told / "room.code").read_text() == "0\n" and "Traceback" not in again, (share, again)
        whole(told / "room", at_once)
        print(f"\n{share:.0%} of {size / 2**10:,.0f} KiB: {errors[0][:150]}", end="")
        shutil.rmtree(told)
    print()


def test_checkpoints_of_a_training_run(tmp_path):
    place = write_place(tmp_path, CONFIG)
    command = [sys.executable, "-c", CODE, "train", f"--config={place}/config.py", f"--workdir={tmp_path}/disk/run"]

    def half(disk):
        for path in checkpoints(disk / "run"):
            verify_checkpoint(path)
        with contextlib.suppress(FileNotFoundError):
            json.loads((disk / "run" / "run.json").read_text())

    check(tmp_path, command, 5, half, lambda disk, whole: assert_equal_runs(whole / "run", disk / "run"))


def test_compression_into_a_store(tmp_path, mesh):
    corpus, checkpoint = tmp_path / "corpus.jsonl", write_checkpoint(tmp_path, mesh)
    expected = versions(corpus, 1, 200)
    command = [sys.executable, "-m", "clara_jax.compress", "--checkpoint", checkpoint, "--corpus", corpus]
    command += ["--encoding", "float32", "--store", tmp_path / "disk" / "store"]

    def half(disk):
        try:
            store = DocumentStore.open(disk / "store")
        except ClaraError as error:
            assert "no store is there" in str(error)
            return
        assert said(store).items() <= expected.items() and damaged_chunks(store) == []

    def whole(disk, other):
        found, wanted = DocumentStore.open(disk / "store"), DocumentStore.open(other / "store")
        assert said(found) == said(wanted) == expected
        ids = sorted(wanted.index()[0])
        np.testing.assert_allclose(found.memories(ids), wanted.memories(ids), atol=1e-5)

    check(tmp_path, command, 5, half, whole)


@pytest.mark.parametrize("form", ["peft", "released", "merged", "compact"])
def test_exports(form, tmp_path, mesh):
    checkpoint = write_checkpoint(tmp_path, mesh)
    command = [sys.executable, "-m", "clara_jax.convert", "export", "--checkpoint", checkpoint, "--format", form]

    def whole(disk, other):
        names = sorted(path.relative_to(other) for path in other.rglob("*"))
        assert names == sorted(path.relative_to(disk) for path in disk.rglob("*")) and names
        assert all(
            (disk / name).read_bytes() == (other / name).read_bytes() for name in names if (disk / name).is_file()
        )

    check(tmp_path, [*command, "--output", tmp_path / "disk" / "out"], 2, nothing_at_all, whole)


def nothing_at_all(disk):
    assert not [*disk.iterdir()]


def test_a_data_set(tmp_path):
    file = write(tmp_path / "x.jsonl", questions(1500, words=200))
    command = [sys.executable, "-m", "clara_jax.data", "build", "instruct", "--train", file]

    def half(disk):
        assert {path.name for path in disk.rglob("*")} <= {"data", "clara_instruct", ".lock"}

    def whole(disk, other):
        source = RecordSource(disk / "data", "train")
        source.verify()
        assert [*source] == read_records(file, "instruct")
        assert source.fingerprint == RecordSource(other / "data", "train").fingerprint

    check(tmp_path, [*command, "--output", tmp_path / "disk" / "data"], 6, half, whole)
