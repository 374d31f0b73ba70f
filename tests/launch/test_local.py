"""local.sh with real processes: what they are given, and that none is left when one has gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.commands import LAUNCH, environment

# Waits for a minute unless it is told otherwise, and fails at SIGUSR1; "ready" says that handlers are in place.
CHILD = """
import os, signal, subprocess, sys, time
number, mode = int(os.environ["CLARA_PROCESS"]), sys.argv[1]
def save(signum, frame):
    print("saved at", signal.Signals(signum).name, flush=True)
    sys.exit(0)
if mode == "save":
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
if mode == "deaf" and number:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "child" and number:
    print("child", subprocess.Popen(["sleep", "60"]).pid, flush=True)
names = ("CLARA_COORDINATOR", "CLARA_PROCESSES", "CLARA_PROCESS")
print("ready", os.getpid(), *(os.environ[name] for name in names), flush=True)
print("to standard error", file=sys.stderr, flush=True)
if mode == "end":
    sys.exit(0)
time.sleep(60)
"""


class Run:
    """local.sh at work; `lines` of what it says, errors among them."""

    def __init__(self, tmp_path, mode, count=3, *options):
        command = [str(LAUNCH / "local.sh"), str(count), *options, sys.executable, "-c", CHILD, mode]
        self.process = subprocess.Popen(
            command,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Tests that run behind a shell (`pytest &`) ignore interrupts; what they start must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines, self.count = [], count

    def ready(self):
        """Waits for all processes; their ids, by number."""
        ids = {}
        while len(ids) < self.count:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip("\n"))
            if " ready " in line:
                prefix, _, process, *_ = line.split()
                ids[int(prefix.strip("[]"))] = int(process)
        return ids

    def end(self, within=30):
        """Its exit code."""
        out, _ = self.process.communicate(timeout=within)
        self.lines += out.splitlines()
        return self.process.returncode

    def said(self):
        """What local.sh itself says."""
        return [line for line in self.lines if not line.startswith("[")]


@pytest.fixture
def start(tmp_path):
    runs = []

    def start(*arguments):
        runs.append(Run(tmp_path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # that is dead, and not yet seen off by whoever inherited it


def assert_gone(processes):
    deadline = time.monotonic() + 5
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, processes))


def test_environment_prefix_and_success(start):
    run = start("end", 3)
    assert run.end() == 0
    for number in range(3):
        marked = [line for line in run.lines if line.startswith(f"[{number}] ")]
        assert f"[{number}] to standard error" in marked and len(marked) == 2
        (ready,) = (line.split()[3:] for line in marked if " ready " in line)
        assert ready[1:] == ["3", str(number)]
        host, port = ready[0].split(":")
        assert host == "127.0.0.1" and 1024 < int(port) < 32768
    assert len({line.split()[3] for line in run.lines if " ready " in line}) == 1, "one coordinator"
    assert run.said() == []


def test_port_can_be_chosen(start):
    run = start("end", 1, "--port", "23456")
    assert run.end() == 0
    assert any("127.0.0.1:23456 1 0" in line for line in run.lines)


def test_one_that_fails_ends_all(start):
    run = start("wait")
    ids = run.ready()
    os.kill(ids[0], signal.SIGUSR1)
    assert run.end() == 7
    assert run.said() == ["local.sh: process 0 ended with exit code 7; ending the others"]
    assert_gone(ids.values())


@pytest.mark.parametrize("victim", [0, 2])
def test_one_that_is_killed_ends_all(start, victim):
    run = start("wait")
    ids = run.ready()
    began = time.monotonic()
    os.kill(ids[victim], signal.SIGKILL)
    assert run.end() == 128 + signal.SIGKILL
    assert time.monotonic() - began < 20
    assert run.said() == [f"local.sh: process {victim} was killed by SIGKILL; ending the others"]
    assert_gone(ids.values())


def test_who_does_not_listen_is_killed_after_the_grace(start):
    run = start("deaf", 3, "--grace", "1")
    ids = run.ready()
    os.kill(ids[0], signal.SIGUSR1)
    assert run.end() == 7
    assert run.said() == [
        "local.sh: process 0 ended with exit code 7; ending the others",
        "local.sh: 2 still running 1 s later; killed",
    ]
    assert_gone(ids.values())


def test_one_that_is_stopped_goes_with_the_others(start):
    """SIGSTOP: it cannot even hear SIGTERM."""
    run = start("wait", 2, "--grace", "1")
    ids = run.ready()
    os.kill(ids[1], signal.SIGSTOP)
    os.kill(ids[0], signal.SIGABRT)  # as the runtime does when it misses a heartbeat
    assert run.end() == 128 + signal.SIGABRT
    assert run.said() == [
        "local.sh: process 0 was killed by SIGABRT; ending the others",
        "local.sh: process 1 is stopped (SIGSTOP)",
        "local.sh: 1 still running 1 s later; killed",
    ]
    assert_gone(ids.values())


def test_of_several_that_ended_the_cause_is_named(start):
    """The launcher may find at one look a process that was killed and those that failed because of it."""
    run = start("wait", 3)
    ids = run.ready()
    os.kill(run.process.pid, signal.SIGSTOP)
    for number, sent in enumerate((signal.SIGUSR1, signal.SIGABRT, signal.SIGKILL)):
        os.kill(ids[number], sent)
    assert_gone(ids.values())
    os.kill(run.process.pid, signal.SIGCONT)
    assert run.end() == 128 + signal.SIGKILL
    assert run.said() == ["local.sh: process 2 was killed by SIGKILL"]


def test_what_a_process_has_started_ends_with_it(start):
    run = start("child", 2)
    ids = run.ready()
    os.kill(ids[0], signal.SIGUSR1)
    assert run.end() == 7
    (child,) = (int(line.split()[2]) for line in run.lines if " child " in line)
    assert_gone([*ids.values(), child])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_waited_for(start, sent):
    run = start("save")
    ids = run.ready()
    run.process.send_signal(sent)
    assert run.end() == 0
    for number in range(3):
        assert run.lines.count(f"[{number}] saved at {sent.name}") == 1
    assert run.said() == [
        f"local.sh: {sent.name}, passed on to all processes; waiting for them",
        "local.sh: all processes have ended",
    ]
    assert_gone(ids.values())


def test_a_command_that_does_not_exist(tmp_path):
    command = [str(LAUNCH / "local.sh"), "2", str(tmp_path / "nothing")]
    result = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=30)
    assert result.returncode == 127
    assert "ended with exit code 127" in result.stderr and "No such file" in result.stdout
