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


SAYS_MUCH = "from clara_jax import command; command.run(lambda: [print('x' * 1000) for _ in range(1000)])"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", [SAYS_MUCH, SAYS_MUCH.replace("range(1000)", "range(1)")])
def test_an_output_that_cannot_be_written(unbuffered, program, tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONPATH": root, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", program]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: standard output: cannot be written: No space left on device\n")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        one.stdout.close()
        assert one.stderr.read() == "" and one.wait() == 2


def test_a_directory_that_is_gone(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = "import os, sys; os.rmdir(os.getcwd()); from clara_jax import command; command.run(lambda: print('here'))"
    (tmp_path / "gone").mkdir()
    done = run(["-c", program], {"PYTHONPATH": root}, tmp_path / "gone")
    assert done.returncode == 2 and done.stderr.startswith(b"error: the working directory cannot be used")
    assert done.stderr.count(b"\n") == 1 and done.stdout == b""


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
