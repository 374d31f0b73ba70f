"""The console command: every command by its name; its help waits for nothing; a mistyped one is refused in a line."""

import importlib.util
import subprocess
import sys

import pytest

from clara_jax import __main__ as clara
from clara_jax import __version__
from clara_jax.data import __main__ as data
from tests.locations import ROOT

# What takes a tenth of a second or more to import, each.
SLOW = {"aiohttp", "array_record", "bm25s", "fastapi", "flax", "fsspec", "grain", "huggingface_hub", "jax", "lancedb"}
SLOW |= {"matplotlib", "openai", "optax", "orbax", "pyarrow", "scipy", "sklearn", "tensorflow_datasets", "tensorstore"}
SLOW |= {"tokenizers", "transformers", "uvicorn"}
SUBCOMMANDS = {
    "convert": ["import", "export"],
    "data": list(data.COMMANDS),
    "evaluate": ["compare"],
    "synthesize": ["answers", "statistics", "review"],
}


def run(*words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clara_jax", *words], cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return done.returncode, done.stdout, said, imported


def test_help_and_version():
    code, out, said, imported = run("--help")
    assert code == 0 and not said and "jax" not in imported and "numpy" not in imported
    assert all(f"\n  {name} " in out for name in clara.COMMANDS)
    assert run()[1] == out
    assert run("--version")[:3] == (0, f"clara_jax {__version__}\n", [])


@pytest.mark.parametrize("name", sorted(clara.COMMANDS))
def test_help_of_no_command_waits_for_libraries(name):
    for words in ([name], *([name, inner] for inner in SUBCOMMANDS.get(name, ()))):
        code, out, said, imported = run(*words, "--help")
        assert code == 0 and not said and out.startswith(f"usage: clara {' '.join(words)} ")
        slow = SLOW & {module.partition(".")[0] for module in imported}
        assert not slow, f"{words}: {', '.join(sorted(slow))}"


def test_every_command_is_there_and_no_other():
    runs = {"ask", "compress", "convert", "evaluate", "mcp", "serve", "synthesize", "track", "train", "aot", "data"}
    assert clara.COMMANDS.keys() == runs
    assert all(importlib.util.find_spec(f"clara_jax.{name}") for name in runs)


@pytest.mark.parametrize(
    "words, says", [(["train"], "usage: clara train "), (["data", "corpus"], "usage: clara data c")]
)
def test_a_command_calls_itself_as_it_was_started(words, says):
    code, out, said, _ = run(*words, "--help")
    assert code == 0 and not said and out.startswith(says)


def test_mistakes_are_one_line():
    assert run("trian")[:3] == (2, "", ["error: there is no command trian; did you mean train?"])
    code, _, said, _ = run("train", "--config", "nowhere.py")
    assert (
        code == 2
        and len(said) == 1
        and said[0].startswith("error: --config: nowhere.py: there is no such file; name a file, or one of demo, ")
    )
