"""The run directory: one process at a time, and files that are old or new, never half."""

import errno
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from clara_jax import files
from clara_jax.errors import ClaraError
from clara_jax.training import run_directory
from clara_jax.training.run_directory import environment, lock, write_json
from tests.locations import ROOT

HOLDER = """
import sys
from clara_jax.training.run_directory import lock
with lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the directory."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "run"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, holder):
    with pytest.raises(ClaraError) as error, lock(tmp_path / "run"):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'run'}: another process (pid {holder.pid} on {platform.node()}) trains in this directory; wait "
        "for it or choose another --workdir"
    )
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == f"pid {os.getpid()} on {platform.node()}\n"


def test_given_back_at_the_end_even_where_a_forked_child_lives_on(tmp_path, monkeypatch):
    real_open, handles = os.open, []
    monkeypatch.setattr(os, "open", lambda *arguments: handles.append(real_open(*arguments)) or handles[-1])
    with pytest.raises(RuntimeError, match="training failed"), lock(tmp_path):
        inherited = os.dup(handles[0])
        with pytest.raises(ClaraError, match="another process"), lock(tmp_path):
            pass
        raise RuntimeError("training failed")
    with lock(tmp_path):
        pass
    os.close(inherited)


def test_no_place_for_a_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="file: cannot be a run directory: File exists; choose another --workdir"):
        with lock(tmp_path / "file"):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(tmp_path):
        pass
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: cannot be locked (No locks available); see to it that no other process trains there\n"
    )


def test_environment():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["clara_jax"] == "0.1.0"
    assert None not in found["versions"].values()
    assert (found["backend"], found["devices"], found["processes"]) == ("cpu", jax.device_count(), 1)
    assert found["started"].endswith("+00:00")
    assert shlex.split(found["command"]) == sys.orig_argv


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_program(tmp_path):
    program = tmp_path / "package" / "__init__.py"
    program.parent.mkdir()
    program.write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    assert run_directory._git(program) is None
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "other")
    assert run_directory._git(program) is None  # installed below a checkout, not part of it
    git("add", "package")
    git("commit", "-m", "package")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert run_directory._git(program) == {"commit": commit, "local_changes": False}
    program.write_text("changed = True")
    assert run_directory._git(program) == {"commit": commit, "local_changes": True}


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [2.5, None]})
    assert json.loads(path.read_text()) == {"a": [2.5, None]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(ClaraError, match="run.json: cannot be written: No space left on device"):
        write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": [2.5, None]}
    assert os.listdir(tmp_path) == ["run.json"]
