"""The entry point, the parser and the common options of all commands.

A user's mistake is one line on standard error and exit code 2. An option that several commands have is declared here,
so that it has one name, one meaning and one help text.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from clara_jax import compile_cache, extras, tpu_flags
from clara_jax.errors import ClaraError, ClaraWarning, ReportedByMainError, did_you_mean, warn_line
from clara_jax.memory_count import MEMORY_COUNTS
from clara_jax.shipped import DEFAULT

NO_COMPILE_CACHE = "--no-compile-cache"
invoked = "python -m clara_jax."  # how a command was started, before its name; `clara_jax.__main__` has another way
_FORMAT_WARNING = warnings.formatwarning
# The errors of a write to standard output that is a full disk or a closed pipe.
_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE)
# How JAX's message begins where JAX_PLATFORMS names a platform that is not there.
_NO_PLATFORM = ("Unable to initialize backend", "Unknown backend")


def run(main: Callable[[], None], compiles: bool = True) -> None:
    """Call ``main``; a `ClaraError` becomes ``error: ...`` and exit code 2, an interrupt exit code 130.

    A process that has joined others (`clara_jax.distributed`) exits at once on any error, so that they notice. Every
    command and benchmark comes through here, so this is where `clara_jax.compile_cache` is enabled, and disabled where
    `NO_COMPILE_CACHE` is among the arguments, from which it is removed.

    An output that cannot be written is one line, too; a closed pipe is silent.

    Input and output are UTF-8: in an ASCII locale (containers, batch systems) Python starts again in its UTF-8 mode.
    Characters that a terminal cannot show are escaped.

    Args:
      main: the command.
      compiles: False for a command that compiles nothing, or that measures compilation.
    """
    _speak_utf8()
    warnings.formatwarning = _format_warning
    tpu_flags.set_defaults()
    tpu_flags.skip_absent()
    if NO_COMPILE_CACHE in sys.argv[1:]:
        sys.argv.remove(NO_COMPILE_CACHE)
        compile_cache.disable()
    elif compiles:
        compile_cache.enable()
    try:
        _check_directory()
        with extras.asked_for():
            main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except ClaraError as error:
        if not isinstance(error, ReportedByMainError):
            print(f"error: {error}", file=sys.stderr)
        _end(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _end(130)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_OUTPUT:
            if error.errno != errno.EPIPE:  # a reader that has closed its pipe needs no message
                print(f"error: standard output: cannot be written: {error.strerror}", file=sys.stderr)
            # Its buffer would fail once more when Python exits.
            with contextlib.suppress(OSError):
                if sys.stdout is not None:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end(2)
        if isinstance(error, RuntimeError) and str(error).startswith(_NO_PLATFORM):
            print(f"error: no devices: {' '.join(str(error).split())[:300]}; see JAX_PLATFORMS", file=sys.stderr)
            sys.exit(2)
        if not _joined():
            raise
        from clara_jax.distributed import explain

        print(explain(error), file=sys.stderr)
        _end(1)


# What an option means, wherever it stands; commands add what its default is.
_OPTIONS: dict[str, dict[str, Any]] = {
    "--base": dict(metavar="NAME", help="the base model (smollm2, a directory, a .gguf file)"),
    "--batch-size": dict(type=int, metavar="N", help="texts, answers or examples of a device call"),
    "--candidates": dict(type=int, metavar="N", help="documents or chunks that the choice is made from"),
    "--checkpoint": dict(
        metavar="DIR", help="a training run, one of its checkpoints, or a released one (a Hub id, too)"
    ),
    "--compress-rate": dict(type=int, metavar="N", help="tokens of a document for each memory vector"),
    "--memory-count": dict(
        choices=MEMORY_COUNTS, help="memory vectors of a document: M, or one for each --compress-rate tokens of it"
    ),
    "--config": dict(
        metavar="NAME[:ARG]",
        help="smoke, smollm2, ..., or a Python file with get_config(arg); its docstring lists arguments",
    ),
    "--doc-max-length": dict(type=int, metavar="N", help="longest document, in tokens"),
    "--follow-links": dict(action="store_true", help="read what links in folders lead to outside of them, too"),
    "--generator": dict(
        metavar="URL", help="vLLM or SGLang, which writes the answers; the key of the server in CLARA_GENERATOR_KEY"
    ),
    "--generator-model": dict(metavar="NAME", help="which of its models"),
    "--json": dict(action="store_true", help="print JSON instead of text"),
    "--k": dict(type=int, metavar="N", help="documents or chunks that the answer is given from"),
    "--limit": dict(type=int, metavar="N", help="take no more than N"),
    "--max-new-tokens": dict(type=int, metavar="N", help="longest answer, in tokens"),
    "--output": dict(metavar="FILE", help="what is written"),
    "--precision": dict(help="of the computation"),
    "--repeats": dict(type=int, metavar="N", help="measurements of each"),
    "--seed": dict(type=int, default=0, metavar="N", help="of all that is drawn at random (0)"),
    "--store": dict(metavar="DIR", help="the store of documents: a directory or a bucket (gs://..., s3://...)"),
    "--strict": dict(action="store_true", help="end at the first file that cannot be read; else it is left out"),
    "--temperature": dict(type=float, metavar="T", help="of sampling; 0 takes the likeliest token"),
    "--tokenizer": dict(metavar="NAME", help="a base model (smollm2, a directory, a .gguf file)"),
    "--top-p": dict(type=float, metavar="P", help="sample from the likeliest tokens with so much probability"),
    "--weights": dict(metavar="NAME", help="adapter, merged, merged-bfloat16 or merged-float32: see docs/inference.md"),
    "--workdir": dict(metavar="DIR", help="the run directory"),
}
_SHORT = {"--k": "-k"}


# What argparse says of a bad command line, and what is said here; what matches none is said as it is.
_REFUSALS = (
    (r"argument (\S+): invalid int value: (.*)", r"\1: \2 is no whole number"),
    (r"argument (\S+): invalid float value: (.*)", r"\1: \2 is no number"),
    (r"argument (\S+): expected (?:one|at least one) argument", r"\1: needs a value after it"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1: takes no value, and \2 is given"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1: cannot be given together with \2"),
    (r"ambiguous option: (\S+) could match (.*)", r"\1 may stand for \2; write it out"),
    (r"the following arguments are required: (.*)", r"\1: is missing"),
)
_UNKNOWN = "unrecognized arguments: "
_BAD_CHOICE = re.compile(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names what was typed."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        if message.startswith(_UNKNOWN):
            refuse_unknown(self, message.removeprefix(_UNKNOWN).partition(" ")[0])
        for theirs, ours in _REFUSALS:
            if match := re.fullmatch(theirs, message, re.DOTALL):
                message = match.expand(ours)
                break
        if match := _BAD_CHOICE.fullmatch(message):
            option, value, choices = match[1], match[2], match[3].replace("'", "").split(", ")
            message = f"{option}: {value!r} must be one of {', '.join(choices)}{did_you_mean(value, choices)}"
        raise ClaraError(f"{message}; see {self.prog} --help")


def refuse_unknown(parser: argparse.ArgumentParser, given: str) -> NoReturn:
    """Refuse what a parser does not know.

    Args:
      parser: with its subcommands' parsers, whose options are known, too.
      given: an option, or what stands where none is expected.

    Raises:
      ClaraError: always, with the nearest known option.
    """
    if not given.startswith("-"):
        parser.error(f"unexpected argument {given!r}")
    name = given.partition("=")[0]
    parser.error(f"unknown option {name}{did_you_mean(name, _option_names(parser))}")


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    names = [name for name, action in parser._option_string_actions.items() if action.help != argparse.SUPPRESS]
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return names + [name for choices in inner for one in choices.values() for name in _option_names(one)]


class _Renamed(argparse.Action):
    """An option under its old name: it warns, and stores as the new one does."""

    def __init__(self, option_strings: Sequence[str], dest: str, new: str = "", **kwargs: Any):
        super().__init__(option_strings, dest, **kwargs)
        self.new = new

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        warn_line(f"{option_string} is now {self.new}; the old name will go in the next version")
        setattr(namespace, self.dest, values)


def make_parser(
    name: str, description: str | None, epilog: str | None = None, package: str = ""
) -> argparse.ArgumentParser:
    """Return the parser of a command, which raises `ClaraError` where it refuses a command line.

    It calls itself as it was started: ``python -m clara_jax.<name>``, or ``clara <name>``.

    Args:
      name: the command, and its subcommand where it has one: "evaluate compare".
      description: printed as it is where it has several lines.
      epilog: after the options, printed as it is.
      package: whose command it is, where it is not this package's: "benchmarks".
    """
    as_it_is = epilog is not None or "\n" in (description or "")
    return _Parser(
        prog=f"python -m {package}.{name}" if package else f"{invoked}{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter if as_it_is else argparse.HelpFormatter,
    )


def add_option(parser: argparse.ArgumentParser, name: str, note: str = "", **changes: Any) -> None:
    """Add an option that several commands have.

    Args:
      parser: of the command.
      name: of the option, one of `_OPTIONS`.
      note: what the command adds to its help, e.g. the default.
      changes: of the arguments of ``add_argument``, e.g. ``required``.
    """
    fields = _OPTIONS[name] | changes
    help_text = f"{fields.pop('help')} ({note})" if note else fields.pop("help")
    parser.add_argument(*filter(None, [_SHORT.get(name), name]), help=help_text, **fields)


def add_renamed_option(parser: argparse.ArgumentParser, old: str, new: str, **fields: Any) -> None:
    """Let an option be given by its old name for one version more; it warns, and the help does not show it.

    Args:
      parser: that has the new one.
      old: the name before.
      new: the name now.
      fields: ``nargs`` and ``type`` of the new one.
    """
    dest = new.removeprefix("--").replace("-", "_")
    fields = {"action": _Renamed, "new": new, "dest": dest, "default": argparse.SUPPRESS, **fields}
    parser.add_argument(old, help=argparse.SUPPRESS, **fields)


def add_compile_option(parser: argparse.ArgumentParser) -> None:
    """Add to ``--help`` the flag that `run` removes from the arguments."""
    parser.add_argument(
        NO_COMPILE_CACHE, action="store_true", help="compile everything anew; neither load nor keep compiled programs"
    )


def add_checkpoint_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--checkpoint``, the model that a command opens; the one inside the package where none is named."""
    add_option(parser, "--checkpoint", f"default: {DEFAULT}, which is in the package", default=default)


def _format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """Return what Python prints of a warning: ours in one line, without the place in the code."""
    if issubclass(category, ClaraWarning):
        return f"warning: {' '.join(str(message).split())}\n"
    return _FORMAT_WARNING(message, category, *place, **line)


def _check_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ClaraError(f"the working directory cannot be used: {error.strerror}; go to another one") from None


def _speak_utf8() -> None:
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # also for child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that several processes may run, see `clara_jax.distributed.initialise`."""
    add = parser.add_argument
    add("--coordinator", metavar="HOST:PORT", help="with --processes and --process: this is one of several processes")
    add("--processes", type=int, metavar="N", help="how many they are")
    add("--process", type=int, metavar="I", help="which one this is")


def _joined() -> bool:
    """Return whether other processes wait for this one; a command that has not imported JAX has joined none."""
    return "clara_jax.distributed" in sys.modules and sys.modules["clara_jax.distributed"].several()


def _end(code: int) -> None:
    if _joined():
        sys.modules["clara_jax.distributed"].leave(code)
    sys.exit(code)
