"""Old names of modules lead to the modules of today, and warn; importing the package changes no variable."""

import importlib
import os
import subprocess
import sys

import pytest

from clara_jax.moved import moved_modules


@pytest.mark.parametrize("old, new", moved_modules().items())
def test_an_old_name_is_the_module(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new) and module.__spec__.name == new


def test_a_name_that_never_was():
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        importlib.import_module("clara_jax.data.no_such")


def test_importing_the_package_sets_no_variable():
    program = "import os; before = dict(os.environ); import clara_jax; assert dict(os.environ) == before"
    program += "; from clara_jax import Clara; assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ.copy())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
