"""The lowest versions that requirements.txt allows: they install together, and what reads strangers' files passes."""

import os
import subprocess
import venv

import pytest

from tests.locations import ROOT

TESTED = [
    "tests/input_pipeline/test_chat_templates.py",
    "tests/input_pipeline/test_tokenization.py",
    "tests/data/corpus",
    "tests/checkpoints",
    "tests/formats",
    "tests/inference/test_memory_store.py",
    "tests/retrieval/test_words.py",
]


@pytest.mark.slow
@pytest.mark.drill
def test_the_lowest_allowed_set(tmp_path):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    floors = [line.replace(">=", "==") for line in lines if line and not line.startswith("#")]
    (tmp_path / "lowest.txt").write_text("\n".join(floors))
    venv.EnvBuilder(with_pip=True).create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-r", str(tmp_path / "lowest.txt")]
    subprocess.run([*install, "pytest", "pytest-xdist", "beartype", "hypothesis"], check=True, cwd=ROOT)
    command = [python, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *TESTED]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
