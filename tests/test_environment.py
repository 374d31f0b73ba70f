"""Whatever the environment says of languages and platforms: it works, or there is one line."""

import os
import subprocess
import sys

import pytest

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1", "PYTHONCOERCECLOCALE": "0"}


def run(arguments, environment, folder):
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, cwd=folder, capture_output=True, timeout=300
    )


@pytest.mark.parametrize("environment", [ASCII, LATIN, {}])
def test_a_command_in_any_locale(environment, tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    (tmp_path / "Häuser 東京.txt").write_text("Wo stehen die Häuser in 東京?", encoding="utf-8")
    command = ["-m", "clara_jax.data", "corpus", "--input", os.fsencode("Häuser 東京.txt"), "--output", "out.jsonl"]
    done = run(command, environment | {"PYTHONPATH": root}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Häuser in 東京" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    missing = run([*command[:4], b"no \xff\xc3\xa4.txt", *command[5:]], environment | {"PYTHONPATH": root}, tmp_path)
    assert missing.returncode == 2 and b"Traceback" not in missing.stderr and missing.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "environment, program, expected",
    [
        ({"JAX_PLATFORMS": "cuda"}, "make_mesh()", "no devices: "),
        ({"JAX_PLATFORMS": "nonsense"}, "make_mesh()", "no devices: "),
        ({"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}, "make_mesh()", "float32"),
        (
            {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
            "make_mesh(); jnp.ones((2, 3)) * jnp.ones(3) + jnp.arange(3)",
            "float32",
        ),
    ],
)
def test_platforms(environment, program, expected, tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    lines = ["import warnings; warnings.simplefilter('ignore')", "from clara_jax.model.sharding import make_mesh"]
    lines += ["from clara_jax.errors import ClaraError", "import jax.numpy as jnp", "try:", f"    {program}"]
    lines += ["    print(jnp.zeros(1).dtype)", "except ClaraError as error:", "    print(error)"]
    done = run(["-c", "\n".join(lines)], environment | {"PYTHONPATH": root}, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith(expected) and done.stdout.count(b"\n") == 1
