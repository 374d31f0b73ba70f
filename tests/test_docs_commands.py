"""Commands in the documents: each is accepted as it stands, and each that is quick runs.

A command that takes long, or needs something that a machine may not have, says so in a comment (CONTRIBUTING.md).
"""

import argparse
import builtins
import importlib
import re
import shlex
import sys

import pytest

from clara_jax import __main__ as clara
from clara_jax import arguments, train
from clara_jax.errors import ClaraError
from clara_jax.training.config_parsing import resolve
from tests.documents import DOCUMENTS, INLINE, Block, commands, marked_lines, started, workspace
from tests.locations import ROOT

OURS = ("clara_jax", "benchmarks", "examples")
# What a sentence may leave out where it names a command, or an option of it, alone.
INCOMPLETE = r": is missing|needs a value|arguments are required: |expected (one|at least one) argument"


class Parsed(BaseException):
    """The words of a command were accepted; no handler of a command takes this for an error."""


class Refused(BaseException):
    """They were not, and why."""


@pytest.fixture(autouse=True)
def _in_workspace(tmp_path):
    with workspace(tmp_path):
        yield


@pytest.fixture
def parsers_only(monkeypatch):
    """Every argparse parser ends with `Parsed` or `Refused`; options are to be named in full."""
    parse_args, parse_known_args = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def parse(self, *given):
        raise Parsed(parse_args(self, *given))

    def parse_in_full(self, *given):
        self.allow_abbrev = False
        return parse_known_args(self, *given)

    def refuse(self, message):
        raise Refused(message)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_in_full)
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)


def python_modules(words):
    """Return (name, words after it) of each ``python -m name``, also where another program is to start it.

    ``clara ask`` is ``python -m clara_jax.ask``.
    """
    if words[0] == "clara":
        known = words[1:2] and words[1] in clara.COMMANDS
        return [(f"clara_jax.{words[1]}", words[2:])] if known else [("clara_jax.__main__", words[1:])]
    words = [part for word in words for part in (shlex.split(word) if "python -m " in word else [word])]
    found = [at for at in range(len(words) - 2) if words[at].endswith("python") and words[at + 1] == "-m"]
    return [(words[at + 2], words[at + 3 :]) for at in found]


def module_of(name):
    """Return the module that ``python -m name`` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def check_config(argv, parser):
    """Parse a command line that may name a configuration; build this and apply what is overridden."""
    try:
        parsed = arguments.parse(parser, argv)
        if parsed.config is not None:
            resolve(parsed.config)
    except ClaraError as error:
        raise Refused(str(error)) from None


def check_module(name, words, monkeypatch):
    """Let a command of this repository parse its words.

    Raises:
      Refused: it does not accept them.
      ImportError: there is no such command.
    """
    module = module_of(name)
    if getattr(module, "parse", None) is arguments.parse:
        if "--help" not in words:
            check_config([name, *words], module.parser())
        return
    monkeypatch.setattr(sys, "argv", [name, *words])
    try:
        with pytest.raises((Parsed, SystemExit)) as ended:  # the latter after --help
            module.main()
    except ClaraError as error:  # what parsers of `clara_jax.command` refuse
        raise Refused(str(error)) from None
    assert ended.type is Parsed or ended.value.code == 0


def check_pytest(words):
    """Hold files, keywords and markers of a call of pytest to the tests."""
    files = [ROOT / word for word in words if word.startswith("tests")] or [ROOT / "tests"]
    for file in files:
        if not file.exists():
            raise Refused(f"{file}: does not exist")
    options = dict(zip(words, words[1:], strict=False))
    if keyword := options.get("-k"):
        paths = [path for file in files for path in ([file] if file.is_file() else file.rglob("*.py"))]
        if not any(keyword in path.name or re.search(rf"def test_\w*{keyword}", path.read_text()) for path in paths):
            raise Refused(f"no test is called {keyword}")
    if (marker := options.get("-m")) and f'"{marker}: ' not in (ROOT / "pyproject.toml").read_text():
        raise Refused(f"no marker is called {marker}")


def check_files(words):
    """Hold names of requirements, and options of our scripts, to the files."""
    for word in words:
        if re.fullmatch(r"requirements[\w-]*\.txt", word) and not (ROOT / word).is_file():
            raise Refused(f"{word}: does not exist")
    if words[0].startswith(("launch/", ".ci/")):
        scripts = [ROOT / words[0], *(ROOT / "launch").glob("*common.sh")]
        if not scripts[0].is_file():
            raise Refused(f"{words[0]}: does not exist")
        text = "".join(script.read_text() for script in scripts)
        until = words.index("--") if "--" in words else len(words)
        for option in words[1:until]:
            if option.startswith("--") and not re.search(rf"{option}\b", text):
                raise Refused(f"{words[0]} has no option {option}")


def check(words, monkeypatch):
    """Check what bash would start, as far as it is ours."""
    check_files(words)
    if words[0].startswith("--config."):  # overrides alone
        check_config(["train", "--config", "configs/smoke.py", *words], train.parser())
    for name, rest in python_modules(words):
        if name == "pytest":
            check_pytest(rest)
        elif name.partition(".")[0] in OURS:
            check_module(name, rest, monkeypatch)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_accepted(document, monkeypatch, parsers_only):
    found = []
    for one in commands(document):
        try:
            check(one.words, monkeypatch)
        except (ImportError, Refused) as error:
            if one.block.language != INLINE or not re.search(INCOMPLETE, str(error)):
                found.append(f"{one}: {error}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_quick_commands_run(document, monkeypatch):
    """In their order, so that one reads what another has written."""
    monkeypatch.setattr(builtins, "input", lambda prompt: "q")  # of who reviews
    for one in commands(document):
        modules = [(name, rest) for name, rest in python_modules(one.words) if name.partition(".")[0] in OURS]
        for name, rest in () if one.marked else modules:
            assert one.words[0] in ("python", "clara"), f"{one}: mark what another program starts"
            monkeypatch.setattr(sys, "argv", [name, *rest])
            try:
                module_of(name).main()
            except (ClaraError, SystemExit) as error:
                pytest.fail(f"{one}: {error}")


def test_every_mark_is_read():
    """A mark is of its command, of lines that go on, or, where it stands alone, of all that follows."""
    text = "a\nb \\\n  --c  # long: an hour\nd   # e; needs: a TPU\nf  # belongs: to none\n# needs: a server\ng\nh\n"
    assert marked_lines(text) == {2, 3, 4, 6, 7, 8, 9}


def test_what_bash_would_start():
    text = """for n in 1 2; do
  python -m a "$n x" \\
    --b
done
run() { launch/x.sh -- python -m c "c:$1"; }
run y && X=1 /usr/bin/time -v python - << END | pip install z
python -m not.a.command
END
"""
    found = sorted(started(Block("a document", 0, "bash", text)))
    assert found == [
        (2, ("python", "-m", "a", "1 x", "--b")),
        (2, ("python", "-m", "a", "2 x", "--b")),
        (5, ("launch/x.sh", "--", "python", "-m", "c", "c:y")),
        (6, ("/usr/bin/time", "-v", "python", "-")),
        (6, ("pip", "install", "z")),
    ]


def test_what_is_wrong_is_found(monkeypatch, parsers_only):
    """Options and fields that are not there, files, tests, and an option that is cut short."""
    for line in (
        "python -m clara_jax.convert export --checkpoint a --format peft --outptu b",
        "python -m clara_jax.convert export --checkpoint a --format peft --out b",
        "python -m clara_jax.train --config configs/smoke.py --config.scp.learning_rat=1",
        "python -m clara_jax.train --config configs/smollm2.py:sice=short",
        "python -m clara_jax.train --config configs/smok.py",
        "python -m clara_jax.aot --config configs/smoke.py --topologie v5e:4x4",
        "launch/local.sh 2 python -m benchmarks.topk --candidate 3",
        "xpk workload create --command 'python -m clara_jax.serve --tekst smollm2'",
        "launch/tpu_run.sh pod --zone a --loggs logs -- ls",
        "python -m pytest tests/method/test_none.py",
        "python -m pytest -k none_of_these",
        "pip install -r requirements-none.txt",
        "--config.scp.learning_rat=3e-4",
    ):
        with pytest.raises(Refused):
            check(shlex.split(line), monkeypatch)
    with pytest.raises(ImportError):
        check(["python", "-m", "clara_jax.trein"], monkeypatch)
