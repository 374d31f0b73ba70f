"""Command lines that name a configuration: ``--config FILE[:ARG] --config.FIELD=VALUE``, and other options."""

from __future__ import annotations

import argparse
import difflib
import re
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from clara_jax import command
from clara_jax.errors import ClaraError


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the options by name; ``config`` is a ConfigDict, or None where none is named.

    Fields of the configuration are overridden by absl's flags, which ml_collections makes of them; the other options
    are the parser's.

    Args:
      parser: of the command, with its options beside ``--config``, which is added.
      argv: the command line, the program's name first.

    Raises:
      ClaraError: every way of getting the command line wrong, in one line.
    """
    command.add_option(parser, "--config")
    # For the help alone; the name holds a dot, so that it meets no field.
    parser.add_argument("--config.FIELD", metavar="VALUE", dest="config.field", help="in place of the file's value")
    arguments, rest = parser.parse_known_args(argv[1:])
    for name in (given.partition("=")[0] for given in rest if given.startswith("--")):
        if not name.startswith(("--config.", "--noconfig.")):
            near = difflib.get_close_matches(name, parser._option_string_actions, 1)
            parser.error(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
    named = [] if arguments.config is None else [f"--config={arguments.config}"]
    arguments.config = _config([argv[0], *named, *rest])
    return arguments


def _config(argv: Sequence[str]) -> Any:
    values = flags.FlagValues()
    defined = dict(flag_values=values, lock_config=True, sys_argv=list(argv))
    config_flags.DEFINE_config_file("config", None, "Configuration file.", **defined)
    try:
        rest = values(list(argv))
    except ClaraError:
        raise
    except FileNotFoundError as error:
        raise ClaraError(
            f"--config: {error.filename or error} does not exist; name a file, e.g. --config configs/smollm2.py"
        ) from None
    except (AttributeError, KeyError) as error:
        if not any(frame.filename == config_path.__file__ for frame in traceback.extract_tb(error.__traceback__)):
            raise ClaraError(f"--config: {type(error).__name__}: {error}") from None  # in the file
        field, meant = re.findall(r"\w+", str(error))[0], re.search(r'mean "(\w+)"', str(error))
        raise ClaraError(
            f"--config: this configuration has no field {field}" + (f"; did you mean {meant[1]}?" if meant else "")
        ) from None
    except Exception as error:  # absl and ml_collections raise what they like; a configuration file is a program
        raise ClaraError(f"--config: {type(error).__name__}: {error}") from None
    if len(rest) > 1:
        raise ClaraError(f"unexpected argument {rest[1]!r}; see --help")
    return values["config"].value
