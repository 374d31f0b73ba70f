"""Command lines that name a configuration: ``--config NAME[:ARG] --config.FIELD=VALUE``, and other options."""

from __future__ import annotations

import argparse
import glob
import os
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from clara_jax import command, configs
from clara_jax.errors import ClaraError, did_you_mean

_OVERRIDE = re.compile(r"(--?(?:no)?config\.)([^=[]+)(.*)", re.DOTALL)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the options by name; ``config`` is a ConfigDict, or None where none is named.

    Fields of the configuration are overridden by absl's flags, which ml_collections makes of them; the other options
    are the parser's.

    Fields that the file or a flag gives by an old name (`clara_jax.training.old_names`) are in their groups, with a
    warning each.

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
            command.refuse_unknown(parser, name)
    named = [] if arguments.config is None else [f"--config={_existing(arguments.config)}"]
    arguments.config = _config([argv[0], *named, *rest])
    return arguments


def _existing(named: str) -> str:
    """Return ``FILE[:ARG]`` of a configuration that is named by its file, or by its name in the package."""
    found = configs.path_of(named)
    drive, rest = os.path.splitdrive(found)
    file = drive + rest.partition(":")[0]
    if not os.path.isfile(file):
        near = did_you_mean(file, [*configs.names(), *_files_beside(file)])
        raise ClaraError(f"--config: {file}: there is no such file{near or f'; {configs.choice()}'}")
    return found


def _files_beside(missing: str) -> list[str]:
    """Return the paths of configuration files in the folder of a missing one, and in ``configs``, as one types them."""
    folders = dict.fromkeys((os.path.dirname(missing), "configs"))
    return [path for folder in folders for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.py")))]


def _config(argv: Sequence[str]) -> Any:
    from clara_jax.training.old_names import path_of  # not for --help, which should not wait for JAX

    argv = [_OVERRIDE.sub(lambda found: f"{found[1]}{path_of(found[2])}{found[3]}", part) for part in argv]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file.", flag_values=values, lock_config=True, sys_argv=argv
    )
    overrides = [found[2] for found in map(_OVERRIDE.fullmatch, argv) if found]
    values["config"].parser = _GroupedParser(values["config"].parser, overrides)
    try:
        rest = values(list(argv))
    except ClaraError:
        raise
    except Exception as error:  # absl and ml_collections raise what they like; a configuration file is a program
        raise ClaraError(f"--config: {type(error).__name__}: {error}") from None
    if len(rest) > 1:
        raise ClaraError(f"unexpected argument {rest[1]!r}; see --help")
    return values["config"].value


class _GroupedParser(flags.ArgumentParser):
    """A parser of configuration files that brings their fields into groups, before flags change them."""

    def __init__(self, parser: flags.ArgumentParser, overrides: Sequence[str]):
        self._parser, self._overrides = parser, overrides

    def parse(self, argument: str) -> Any:
        """Return the configuration of a file.

        Raises:
          ClaraError: it has not a field that a flag names.
        """
        from clara_jax.training.old_names import run_in_groups

        config = self._parser.parse(argument)
        if isinstance(config, ConfigDict):
            config = ConfigDict(run_in_groups(_plain(config)))
            for override in self._overrides:
                _check_field(config, override)
            config.lock()
        return config


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Return a ConfigDict as dicts, with its placeholders."""
    items = config.items(preserve_field_references=True)
    return {name: _plain(value) if isinstance(value, ConfigDict) else value for name, value in items}


def _check_field(config: ConfigDict, path: str) -> None:
    """Check that a configuration has the field that a flag names."""
    from clara_jax.config_checks import nearest_field

    node: Any = config
    names = path.split(".")
    for number, name in enumerate(names):
        if not isinstance(node, ConfigDict) or name not in node:
            near = ""
            if isinstance(node, ConfigDict):
                within: Any = config[names[0]] if number else config
                near = nearest_field(name, node, _paths(within), names[0] if number else "")
            raise ClaraError(f"--config.{path}: this configuration has no field {'.'.join(names[: number + 1])}{near}")
        node = node[name]


def _paths(section: ConfigDict) -> dict[str, str]:
    """Return the paths of all fields below a section by their last names."""
    found = {}
    for name in section:
        value: Any = section[name]
        if isinstance(value, ConfigDict):
            found |= {last: f"{name}.{path}" for last, path in _paths(value).items()}
        else:
            found[name] = name
    return found
