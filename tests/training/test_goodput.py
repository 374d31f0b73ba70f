"""Goodput: every second of a run is in one category, and what a kill costs is known."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from clara_jax.errors import ClaraError
from clara_jax.training.goodput import CATEGORIES, GOODPUT, Goodput
from clara_jax.training.metrics import read_metrics
from tests.locations import ROOT
from tests.tiny import write_place


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def read(path):
    return json.loads((path / GOODPUT).read_text())


def test_every_second_is_in_one_category(tmp_path, clock):
    goodput = Goodput(tmp_path / GOODPUT, clock=clock, began=95.0)
    clock.now += 2
    with goodput.measure("steps"):
        clock.now += 10
        goodput.move("compiling", 4)
        with goodput.measure("evaluating"):
            clock.now += 3
        clock.now += 1
    goodput.write()
    total = read(tmp_path)
    wanted = {"steps": 7, "compiling": 4, "evaluating": 3, "starting": 7}
    assert total["seconds"] == dict.fromkeys(CATEGORIES, 0) | wanted
    assert total["wall"] == 21 == clock.now - 95 and total["goodput"] == round(7 / 21, 4)
    assert goodput.line() == ("goodput 33.3% of 21.0 s: steps 7.0 s, compiling 4.0 s, evaluating 3.0 s, starting 7.0 s")


def worked(path, clock, checkpoint, *parts):
    """A process that goes on from a checkpoint, and is killed after these parts: seconds of steps, or a checkpoint."""
    goodput = Goodput(path / GOODPUT, checkpoint, clock=clock)
    clock.now += 1
    with goodput.measure("steps"):
        for part in parts:
            if isinstance(part, str):
                with goodput.measure("saving"):
                    clock.now += 0.5
                goodput.saved(part)
            else:
                clock.now += part
    goodput.write()
    return read(path)


def test_what_is_done_again_is_lost_and_nothing_else(tmp_path, clock):
    first = worked(tmp_path, clock, None, 10, "a", 20, "b", 5)
    assert first["seconds"]["steps"] == 35 and first["seconds"]["lost"] == 0
    clock.now += 1000  # the time between two processes belongs to none
    second = worked(tmp_path, clock, "b", 7)
    assert (second["seconds"]["steps"], second["seconds"]["lost"]) == (37, 5)
    # It has saved nothing: all its steps are done again. Then the newest checkpoint is found to be damaged.
    third = worked(tmp_path, clock, "b", 3, "c")
    assert (third["seconds"]["steps"], third["seconds"]["lost"]) == (33, 12)
    fourth = worked(tmp_path, clock, "a", 1)
    assert fourth["seconds"]["steps"] == 11 and fourth["seconds"]["lost"] == 12 + 20 + 0.5 + 3 + 0.5
    fifth = worked(tmp_path, clock, None, 1)
    assert fifth["seconds"]["steps"] == 1
    for total in (first, second, third, fourth, fifth):
        assert total["wall"] == pytest.approx(sum(total["seconds"].values()))
    assert fifth["wall"] == clock.now - 100 - 1000 and len(fifth["processes"]) == 5


def test_a_stop_that_saves_loses_nothing(tmp_path, clock):
    worked(tmp_path, clock, None, 10, "a", 20, "b")
    total = worked(tmp_path, clock, "b", 5)
    assert total["seconds"]["lost"] == 0 and total["seconds"]["steps"] == 35


def test_the_file_is_written_while_it_works_and_does_not_grow_without_end(tmp_path, clock):
    goodput = Goodput(tmp_path / GOODPUT, clock=clock)
    with goodput.measure("steps"):
        for number in range(300):
            with goodput.measure("data"):
                clock.now += 1
            goodput.saved(f"00-scp-{number:08d}")
            assert clock.now - 100 - read(tmp_path)["wall"] <= 11
    goodput.write()
    (process,) = read(tmp_path)["processes"]
    assert len(process["checkpoints"]) == 100 and "00-scp-00000299" in process["checkpoints"]


@pytest.mark.parametrize(
    "processes",
    [
        "null",
        "[1]",
        "[{}]",
        '[{"checkpoints": {}, "seconds": {}}]',
        '[{"checkpoints": {"a": 1}, "seconds": {}}]',
    ],
)
def test_a_file_that_holds_something_else_is_one_line(tmp_path, clock, processes):
    (tmp_path / GOODPUT).write_text(f'{{"processes": {processes}}}')
    with pytest.raises(ClaraError, match="goodput.json: is no record of goodput; delete it"):
        Goodput(tmp_path / GOODPUT, "a", clock=clock)


CONFIG = """
from clara_jax.configs import common
from tests.configurations import small_run

def get_config(arg=None):
    by_stage = dict(scp=dict(optimizer=dict(steps=40), saving=dict(every=10)))
    return small_run({base!r}, {data!r}, "scp", by_stage, batch_size=4, answers=0, mesh=(1, 1))
"""
CODE = "import sys; sys.argv = sys.argv[1:]; from clara_jax import command, train; command.run(train.main)"


def test_a_run_that_is_killed_and_goes_on(tmp_path):
    """A real one, in real processes: the categories sum to the time that the processes took."""
    place, run = write_place(tmp_path / "place", CONFIG), tmp_path / "run"

    def start():
        command = [sys.executable, "-c", CODE, "train", f"--config={place}/config.py", f"--workdir={run}"]
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    process = start()
    deadline = time.monotonic() + 240
    metrics, checkpoint = run / "metrics.jsonl", run / "checkpoints" / "00-scp-00000010"
    while not (checkpoint.exists() and any(row.get("step", 0) > 14 for row in read_metrics(metrics))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    killed = read(run)
    began = time.monotonic()
    process = start()
    said, _ = process.communicate(timeout=240)
    took = time.monotonic() - began
    assert process.returncode == 0, said
    total = read(run)
    first, second = total["processes"]
    assert sum(first["seconds"].values()) == pytest.approx(sum(killed["processes"][0]["seconds"].values()), abs=0.01)
    assert total["wall"] == pytest.approx(sum(total["seconds"].values()), abs=0.01)
    assert 0.3 * took < sum(second["seconds"].values()) < took  # without the imports before the run begins
    assert all(
        second["seconds"][name] > 0 for name in ("steps", "data", "compiling", "evaluating", "saving", "starting")
    )
    # The kept seconds of the first are those at the checkpoint that the second went on from.
    (from_,) = [line for line in said.splitlines() if line.startswith("going on from")]
    kept = first["checkpoints"].get(from_.rpartition("/")[2])
    assert "scp: goodput " in said and "% of " in said
    assert kept is not None and first["seconds"]["steps"] == pytest.approx(kept["steps"], abs=0.002)
