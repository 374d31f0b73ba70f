"""Trains CLaRa: the stages a configuration names, in order.

    python -m clara_jax.train --config configs/smollm2.py:size=tiny --workdir runs/first

--config FILE[:ARG]        a Python file with get_config(arg); its docstring lists the arguments
--config.FIELD=VALUE       overrides a field, e.g. --config.scp.learning_rate=3e-4 --config.mesh=4,2 --config.seed=1
--workdir DIR              the run directory (default runs/<date>-<time>): config.json, metrics.jsonl, checkpoints/

A checkpoint, or the whole run directory, opens with clara_jax.Clara.load(DIR).
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from clara_jax import command
from clara_jax.errors import ClaraError


def main() -> None:
    if {"--help", "-h", "--helpfull"} & set(sys.argv[1:]):
        print(__doc__)
        return
    from clara_jax.training.config import resolve
    from clara_jax.training.loop import run

    config, workdir = _parse(sys.argv)
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = resolve(config)
    directory = Path(workdir or config.workdir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    bundle = run(config, directory)
    print(
        f"finished: {len(config.stages)} stage(s), fingerprint {bundle.fingerprint()[:12]}; open with "
        f"clara_jax.Clara.load({str(directory)!r})"
    )


def _parse(argv: list[str]):
    """The ConfigDict and the run directory; every way of getting the command line wrong is one line."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, "Configuration file.", flag_values=values, lock_config=True
    )
    workdir = flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    try:
        rest = values(argv)
    except ClaraError:
        raise
    except FileNotFoundError as error:
        raise ClaraError(
            f"--config: {error.filename or error} does not exist; name a file, e.g. --config configs/smollm2.py"
        ) from None
    except Exception as error:  # absl and ml_collections raise what they like; a configuration file is a program
        raise ClaraError(f"--config: {type(error).__name__}: {error}") from None
    if len(rest) > 1:
        raise ClaraError(f"unexpected argument {rest[1]!r}; see --help")
    if values["config"].value is None:
        raise ClaraError("--config is missing; name a file, e.g. --config configs/smollm2.py")
    return values[holder.name].value, values[workdir.name].value


if __name__ == "__main__":
    command.run(main)
