"""TPU slices by name, and devices to compile for, which need not be present."""

from __future__ import annotations

import importlib.util
import os
import re

from clara_jax import tpu_flags
from clara_jax.chips import CHIPS, Chip
from clara_jax.errors import ClaraError

# For libtpu without a TPU: no query of the metadata server, no warnings about that, and several processes may compile
# at once. The names of host and accelerator do not change the compiled programs.
ABSENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
ABSENT |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip of ``"v5p:4x4x4"``, and the number of chips along each axis.

    Raises:
      ClaraError: another form, or a chip that is not in the table.
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise ClaraError(f"--topology: {name!r} names no known chip; known are {', '.join(CHIPS)}, e.g. v5p:4x4x4")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ClaraError(f"--topology: {name!r} needs the chips along each axis, e.g. {chip}:2x4 or {chip}:2x2x1")
    return CHIPS[chip], tuple(map(int, shape.split("x")))


def devices(name: str) -> list:
    """Return the devices of a topology, for compilation alone.

    Raises:
      ClaraError: as `parse`; libtpu is missing; libtpu does not know the topology.
    """
    chip, _ = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ClaraError("--topology: libtpu is not installed; run: pip install libtpu")
    for variable, value in ABSENT.items():
        os.environ.setdefault(variable, value)
    tpu_flags.set_defaults()
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, chip_config_name=chip.mode)
        return list(found.devices)
    except Exception as error:  # the runtime documents no type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClaraError(f"--topology: {name!r} is not one that libtpu knows: {reason}") from None
