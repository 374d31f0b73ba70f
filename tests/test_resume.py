"""Runs that are killed, stopped or damaged go on as if nothing had happened: real processes, compared bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from clara_jax.checkpoints.retention import checkpoints
from clara_jax.checkpoints.run import load_arrays
from clara_jax.training.metrics import read_metrics
from tests.commands import run_train
from tests.locations import ROOT
from tests.tiny import write_place

CONFIG = """
from clara_jax.configs import common
from tests.configurations import small_run

def get_config(arg=None):
    args = common.parse_arg(arg, stages="scp+end_to_end")
    ranking = dict(topk=dict(method="gumbel", learn_temperature=True))  # noise, and a number beside
    ranking |= dict(data=dict(buckets=2), objective=dict(marginal_weight=0.1))
    by_stage = dict(scp=dict(data=dict(pack=160)), instruct=dict(data=dict(buckets=2)), end_to_end=ranking)
    return small_run({base!r}, {data!r}, args.stages, by_stage, batch_size=4, answers=2, mesh=(1, 1))
"""
# What a line says of the process that wrote it, and not of the run.
PROCESS = ("seconds", "tokens_per_second", "tokens_per_second_per_device", "mfu")
PROCESS += ("compile_seconds", "compilations", "evaluation_compilations")
PROCESS += ("host_peak_gib", "device_peak_gib", "device_in_use_gib")
CODE = "import sys; sys.argv = sys.argv[1:]; from clara_jax import command, train; command.run(train.main)"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"), CONFIG)


def start(place, run, stages="scp+end_to_end", cache=True):
    """The command as another process, which finds what this one and others have compiled, or (where it is to be killed
    while it compiles) does not."""
    log = open(f"{run}.log", "ab")
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            CODE,
            "train",
            f"--config={place}/config.py:stages={stages}",
            f"--workdir={run}",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(cache)},
        stdout=log,
        stderr=log,
    )


def here(monkeypatch, *arguments):
    """The command in this process and on one device, for what ends before anything is trained; its exit code."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    return run_train(monkeypatch, *arguments)


def output(run):
    with open(f"{run}.log") as file:
        return file.read()


def finish(place, run, *arguments):
    process = start(place, run, *arguments)
    assert process.wait(300) == 0, output(run)
    return run


def rows(run):
    """What was logged of the run."""
    return [{k: v for k, v in row.items() if k not in PROCESS} for row in read_metrics(run / "metrics.jsonl")]


def assert_equal_runs(one, other):
    assert rows(one) == rows(other)
    # The newest checkpoint of each stage: parameters and optimizer.
    for path in checkpoints(one):
        twin = other / "checkpoints" / path.name
        if twin.exists():
            mine, yours = ({k: v for k, v in flat(load_arrays(p))} for p in (path, twin))
            assert mine.keys() == yours.keys() and all(np.array_equal(mine[k], yours[k]) for k in mine), path.name
    assert checkpoints(one)[-1].name == checkpoints(other)[-1].name
    ends = [json.loads((run / "run.json").read_text())["finished"]["fingerprint"] for run in (one, other)]
    assert ends[0] == ends[1]


def flat(tree, name=""):
    for key, value in tree.items():
        yield from flat(value, f"{name}/{key}") if isinstance(value, dict) else [(f"{name}/{key}", np.asarray(value))]


@pytest.fixture(scope="module")
def uninterrupted(place):
    return finish(place, place / "whole")


def saving(run):
    return any(run.glob("checkpoints/.*partial*"))


def compiling(run):
    return "Shapes(" in output(run).rpartition("going on")[2]


def evaluating(run):
    """The step before an evaluation is under way or done: the evaluation comes next, and takes longer than a step."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return bool(lines) and json.loads(lines[-1]).get("step") == 1 and "loss" in json.loads(lines[-1])


@pytest.mark.parametrize(
    "moment", [saving, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (compiling, evaluating))]
)
def test_killed_at_a_bad_moment(moment, place, uninterrupted):
    run = place / f"killed_{moment.__name__}"
    process = start(place, run, cache=moment is not compiling)
    deadline = time.monotonic() + 120
    while not moment(run):
        assert process.poll() is None and time.monotonic() < deadline, output(run)
        time.sleep(0.001)
    time.sleep({"compiling": 0.5, "evaluating": 0.05}.get(moment.__name__, 0))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finish(place, run)
    assert_equal_runs(uninterrupted, run)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["scp", "end_to_end"])
def test_killed_at_ten_random_moments(stage, place):
    killed_at_random_moments(place, stage, 10, cache=False)


def killed_at_random_moments(place, stages, count, cache):
    """A run that is killed so many times equals one that was not.

    Returns:
      how many times it came to its end first, and was begun anew.
    """
    whole, run = place / f"whole_{stages}", place / f"killed_{stages}"
    if cache:
        finish(place, place / f"compiling_{stages}", stages)
    began = time.monotonic()
    finish(place, whole, stages, cache)
    whole_time, draw, kills, ended = time.monotonic() - began, random.Random(stages), 0, 0
    while kills < count:
        process = start(place, run, stages, cache=cache)
        try:
            # Most moments lie behind the imports, of which there is little to break.
            process.wait(draw.uniform(0.2, 1) * whole_time)
            assert process.returncode == 0, output(run)
            shutil.rmtree(run)  # it came to its end first: once more from the beginning
            ended += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    finish(place, run, stages)
    assert_equal_runs(whole, run)
    return ended


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_by_sigterm_repeats_no_step(times, place, uninterrupted):
    run, stops = place / f"stopped{times}", 0
    while stops < times:
        process = start(place, run)
        deadline = time.monotonic() + 120
        seen = output(run).count("/6")
        while output(run).count("/6") < seen + 2:  # two steps more are logged
            assert process.poll() is None and time.monotonic() < deadline, output(run)
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, output(run)
        assert "the same command goes on" in output(run).splitlines()[-1]
        newest = checkpoints(run)[-1]
        step = int(newest.name.rpartition("-")[2])
        logged = [row["step"] for row in rows(run) if "loss" in row and row["stage"] in newest.name]
        assert logged == list(range(step)), "all steps up to the stop are saved"
        stops += 1
    finish(place, run)
    assert_equal_runs(uninterrupted, run)


def test_a_finished_run_does_nothing(place, uninterrupted, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != ".lock"}
    assert here(monkeypatch, f"--config={place}/config.py", f"--workdir={uninterrupted}") == 0
    assert "nothing to do" in capsys.readouterr().out.splitlines()[-1]
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != ".lock"}


def test_a_damaged_checkpoint_is_passed_over(place, uninterrupted):
    run = place / "damaged"
    shutil.copytree(uninterrupted, run)
    kept = json.loads((run / "run.json").read_text())
    del kept["finished"]
    (run / "run.json").write_text(json.dumps(kept))
    newest = checkpoints(run)[-1]
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    finish(place, run)
    warned = [line for line in output(run).splitlines() if newest.name in line and "checksum" in line]
    assert len(warned) == 1
    assert_equal_runs(uninterrupted, run)


def test_two_runs_in_one_directory_are_refused(place, monkeypatch, capsys):
    run = place / "twice"
    first = start(place, run)
    while not (run / "config.json").exists():
        assert first.poll() is None, output(run)
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the directory, and need do no more
    code = here(monkeypatch, f"--config={place}/config.py", f"--workdir={run}")
    first.kill()
    first.wait()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and str(first.pid) in errors[0]


def test_another_configuration_is_refused(place, uninterrupted, monkeypatch, capsys):
    arguments = f"--config={place}/config.py", "--config.scp.optimizer.learning_rate=1e-3", f"--workdir={uninterrupted}"
    code = here(monkeypatch, *arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "config.scp.optimizer.learning_rate is 0.001" in errors[0]
