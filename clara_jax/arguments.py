"""Command lines that name a configuration: ``--config FILE[:ARG] --config.FIELD=VALUE``, and other flags."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from clara_jax.errors import ClaraError


def parse(argv: Sequence[str], other_flags: Mapping[str, type]) -> SimpleNamespace:
    """Return the flags by name, with underscores; ``config`` is a ConfigDict. Flags that are not given are None.

    Args:
      argv: the command line, the program's name first.
      other_flags: name -> type (str or int) of the command's flags beside ``--config``.

    Raises:
      ClaraError: every way of getting the command line wrong, in one line.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Configuration file.", flag_values=values, lock_config=True)
    for name, kind in other_flags.items():
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer}[kind]
        define(name, None, "See the command's --help.", flag_values=values)
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
    return SimpleNamespace(**{name.replace("-", "_"): values[name].value for name in ("config", *other_flags)})
