"""One lock file at a time for one process, on systems with and without fcntl."""

import errno
import importlib.util
import os
import sys
import types

import pytest

from clara_jax import locks
from clara_jax.errors import ClaraError
from tests.locations import ROOT


class Ranges:
    """What the module msvcrt does: locks of ranges of bytes, each of one open file."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self):
        self.held = {}  # (file's number, first byte, end) -> handle

    def locking(self, handle, mode, size):
        start, number = os.lseek(handle, 0, os.SEEK_CUR), os.fstat(handle).st_ino
        if mode == self.LK_UNLCK:
            del self.held[number, start, start + size]
            return
        if any(file == number and first < start + size and start < end for file, first, end in self.held):
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held[number, start, start + size] = handle


def as_on_windows(monkeypatch, name):
    """Import a module of the package once more, as on Windows."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(**_public(Ranges())))
    for absent in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, absent, None)
    path = ROOT / "clara_jax" / f"{name.replace('.', '/')}.py"
    spec = importlib.util.spec_from_file_location(f"windows_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _public(ranges):
    return {name: getattr(ranges, name) for name in ("LK_NBLCK", "LK_UNLCK", "locking", "held")}


@pytest.fixture(params=["posix", "windows"])
def locked(request, monkeypatch):
    return (as_on_windows(monkeypatch, "locks") if request.param == "windows" else locks).locked


def test_one_at_a_time(locked, tmp_path):
    with locked(tmp_path / "lock", "busy"):
        for busy in ("busy", lambda: "busy"):
            with pytest.raises(ClaraError, match="^busy$"), locked(tmp_path / "lock", busy):
                pass
        with locked(tmp_path / "other", "busy"):
            pass
    with locked(tmp_path / "lock", "busy"):
        pass


def test_any_number_share_to_the_exclusion_of_others(locked, tmp_path):
    with locked(tmp_path / "lock", "busy", shared=True), locked(tmp_path / "lock", "busy", shared=True):
        with pytest.raises(ClaraError, match="busy"), locked(tmp_path / "lock", "busy"):
            pass
    with locked(tmp_path / "lock", "busy"):
        with pytest.raises(ClaraError, match="busy"), locked(tmp_path / "lock", "busy", shared=True):
            pass


def test_an_error_in_the_block_gives_it_back(locked, tmp_path):
    with pytest.raises(RuntimeError, match="failed"), locked(tmp_path / "lock", "busy"):
        raise RuntimeError("failed")
    with locked(tmp_path / "lock", "busy"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    found = []
    with locks.locked(tmp_path / "lock", None, unsupported=found.append):
        assert [error.errno for error in found] == [errno.ENOLCK]


@pytest.mark.parametrize("name", ["confined", "training.metrics", "training.run_directory"])
def test_modules_can_be_imported_without_fcntl_and_resource(name, monkeypatch):
    as_on_windows(monkeypatch, name)


def test_without_bounds_nothing_of_strangers_is_read(monkeypatch):
    with pytest.raises(ClaraError, match="Windows cannot bound"):
        as_on_windows(monkeypatch, "confined").Confined().call("clara_jax.spelling:nfc", ("a",), 1.0)
