"""The entry point that all commands share: a user's mistake is one line on standard error and exit code 2."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable

from clara_jax import compile_cache, tpu_flags
from clara_jax.errors import ClaraError, ReportedByMainError
from clara_jax.shipped import DEFAULT

NO_COMPILE_CACHE = "--no-compile-cache"
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
    tpu_flags.set_defaults()
    if NO_COMPILE_CACHE in sys.argv[1:]:
        sys.argv.remove(NO_COMPILE_CACHE)
        compile_cache.disable()
    elif compiles:
        compile_cache.enable()
    try:
        _check_directory()
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


def add_compile_option(parser: argparse.ArgumentParser) -> None:
    """Add to ``--help`` the flag that `run` removes from the arguments."""
    parser.add_argument(
        NO_COMPILE_CACHE, action="store_true", help="compile everything anew; neither load nor keep compiled programs"
    )


def add_checkpoint_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--checkpoint``, the model that a command opens; the one inside the package where none is named."""
    parser.add_argument(
        "--checkpoint",
        default=default,
        metavar="DIR",
        help=f"a training run, one of its checkpoints, or a released one (default: {DEFAULT}, which is in the package)",
    )


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
