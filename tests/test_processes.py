"""Runs of several real processes: the losses of one, checkpoints together, and none that outlives the others."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from clara_jax.checkpoints.retention import checkpoints
from clara_jax.training.run_directory import lock
from tests.locations import ROOT
from tests.test_resume import CODE, output, rows
from tests.tiny import write_place

STAGES = ("scp", "instruct", "retrieval", "end_to_end")
DEVICES = 4  # of all processes together
CONFIG = """
from clara_jax.configs import common
from tests.configurations import small_run

def get_config(arg=None):
    args = common.parse_arg(arg, stages="end_to_end", mesh=(-1, 1), memories="")
    by_stage = dict(
        scp=dict(data=dict(pack=160)),
        instruct=dict(data=dict(buckets=2)),
        # At the paper's 0.02 and this learning rate the last bits of a sum over processes grow to 1e-5 in two steps.
        retrieval=dict(topk=dict(temperature=0.1)),
        end_to_end=dict(data=dict(buckets=2, memories=args.memories)),
    )
    return small_run({base!r}, {data!r}, args.stages, by_stage, batch_size=8, answers=0, mesh=args.mesh)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("processes"), CONFIG)


class Run:
    """A run of some processes, started by the launcher where they are several."""

    def __init__(self, place, name, processes, arg="", *flags, grace=10):
        self.path = place / name
        command = [sys.executable, "-c", CODE, "train", f"--config={place}/config.py{arg and ':' + arg}"]
        command += [f"--workdir={self.path}", *flags]
        launcher = [str(ROOT / "launch/local.sh"), str(processes), "--grace", str(grace)] if processes > 1 else []
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES // processes)}
        with open(f"{self.path}.log", "ab") as log:
            self.process = subprocess.Popen(
                launcher + command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, seconds=1500):
        return self.process.wait(seconds)

    def output(self):
        return output(self.path)

    def finish(self):
        assert self.wait() == 0, self.output()
        return self.path

    def wait_for(self, pattern, seconds=300):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output()):
            assert self.process.poll() is None and time.monotonic() < end, self.output()
            time.sleep(0.05)

    def send(self, number, process):
        """A signal to one of the processes."""
        (pid,) = (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is(pid, process))
        os.kill(pid, number)

    def _is(self, pid, process):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                words = cmdline.read().split(b"\0")
                numbered = f"CLARA_PROCESS={process}".encode() in environ.read().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            return False
        return numbered and b"train" in words and f"--workdir={self.path}".encode() in words


def assert_same_losses(one, other):
    """Row by row, but for what sums in another order change: gradient norms are sums over all parameters."""
    mine, yours = rows(one), rows(other)
    assert [(row["stage"], row.get("step")) for row in mine] == [(row["stage"], row.get("step")) for row in yours]
    for row, its in zip(mine, yours, strict=True):
        assert row.keys() == its.keys()
        for name, value in row.items():
            if isinstance(value, float) and name not in ("tokens", "padding"):
                tolerance = 1e-4 if "norm" in name else 1e-5
                np.testing.assert_allclose(value, its[name], rtol=tolerance, atol=1e-5, err_msg=f"{name} {row}")


@pytest.fixture(scope="module")
def alone(place):
    """One process with all devices."""
    return Run(place, "alone", 1).finish()


def test_two_processes_stop_together_and_one_goes_on(place, alone):
    """One of them is told to stop: both save at the same step, and one process finishes what two have begun."""
    two = Run(place, "two", 2)
    two.wait_for(r"end_to_end 3/6")
    two.send(signal.SIGTERM, 1)
    assert two.wait() == 0, two.output()
    saved = re.search(r"\[0\] stopped at end_to_end step (\d) of 6, saved in", two.output())
    assert saved and "[1] stopped" not in two.output(), "it is said once"
    assert checkpoints(two.path)[-1].name.endswith(f"{int(saved[1]):08d}")
    assert_same_losses(Run(place, "two", 1).finish(), alone)


def test_a_mistake_is_said_once_and_ends_all(place):
    with lock(place / "locked"):
        run = Run(place, "locked", 2)
        assert run.wait(120) == 2, run.output()
    said = [line for line in run.output().splitlines() if "error:" in line]
    assert len(said) == 1 and "another process" in said[0] and "trains in this directory" in said[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_a_checkpoint(place, alone):
    run = Run(place, "killed", 2)
    run.wait_for(r"end_to_end 5/6")
    run.send(signal.SIGKILL, 1)
    assert run.wait(60) == 128 + signal.SIGKILL
    assert_same_losses(Run(place, "killed", 2).finish(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("number,process", [("KILL", 0), ("KILL", 1), ("STOP", 0), ("STOP", 1)])
def test_no_process_outlives_another(place, number, process):
    run = Run(place, f"{number}{process}", 2, "", "--config.end_to_end.optimizer.steps=100000")
    run.wait_for(r"end_to_end 2/100000")
    if number == "KILL":
        # The other would end by itself when the connection breaks, perhaps before the launcher has looked: hold it.
        run.send(signal.SIGSTOP, 1 - process)
    began = time.monotonic()
    run.send(getattr(signal, f"SIG{number}"), process)
    assert run.wait(90) != 0 and time.monotonic() - began < 60
    line = {"KILL": "was killed by SIGKILL; ending the others", "STOP": "is stopped (SIGSTOP)"}[number]
    assert f"local.sh: process {process} {line}" in run.output()


@pytest.mark.slow
@pytest.mark.parametrize("processes,mesh", [(2, "-1,1"), (4, "-1,1"), (2, "2,2"), (4, "2,1,2")])
def test_several_processes_train_every_stage_as_one(place, processes, mesh):
    stages = "+".join(STAGES)
    sizes = mesh.replace(",", "x")
    flags = [f"--config.mesh={mesh}", "--config.reporting.show=1"]
    flags += [f"--config.{name}.evaluation.answers=2" for name in STAGES]
    one = Run(place, f"all-1-{sizes}", 1, f"stages={stages}", *flags).finish()  # where it is finished, it ends at once
    several = Run(place, f"all-{processes}-{sizes}", processes, f"stages={stages}", *flags)
    assert_same_losses(several.finish(), one)
    assert several.output().count("Question:") == 1


@pytest.mark.slow
def test_the_number_of_processes_may_change_from_start_to_start(place, alone):
    for count, step in ((4, 2), (2, 4), (1, None)):
        run = Run(place, "changing", count)
        if step:
            run.wait_for(rf"end_to_end {step}/6")
            run.send(signal.SIGTERM, 0)
        assert run.wait() == 0, run.output()
    assert_same_losses(run.path, alone)


@pytest.mark.slow
def test_several_processes_compress_into_one_store(place):
    arg = "memories={}"
    one = Run(place, "stored-1", 1, arg.format(place / "store-1")).finish()
    two = Run(place, "stored-2", 2, arg.format(place / "store-2")).finish()
    assert_same_losses(two, one)
    assert_same_losses(Run(place, "stored-3", 2, arg.format(place / "store-1")).finish(), one)
