"""TPU slices by name: the chips' peak figures, and devices to compile for, which need not be present."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

from clara_jax import tpu_flags
from clara_jax.errors import ClaraError

# For libtpu without a TPU: no query of the metadata server, no warnings about that, and several processes may compile
# at once. The names of host and accelerator do not change the compiled programs.
ABSENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
ABSENT |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, which JAX may see as several devices that share these figures equally.

    Attributes:
      hbm_bytes: memory of a chip.
      flops: dense bfloat16 FLOP/s of a chip.
      hbm_bandwidth: bytes/s of a chip.
      ici_bandwidth: bytes/s that reach a chip from its neighbours over all of its ports.
      ports: links to neighbours; two along each axis of the torus.
      wraps: an axis whose length is a multiple of this closes to a ring.
      source: the public page the figures are from.
      devices: JAX devices of a chip.
      mode: libtpu's chip configuration; with "megacore" a v4's two cores are one device.
    """

    name: str
    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    ports: int
    wraps: int
    source: str
    devices: int = 1
    mode: str = "default"

    def bandwidth_in(self, shape: tuple[int, ...]) -> float:
        """Return the bytes/s that reach the chip with the fewest links, inf where the slice is one chip.

        Along an axis that does not close to a ring, a chip at its end has one link.

        Args:
          shape: chips of the slice along each axis.
        """
        links = sum(2 if size % self.wraps == 0 else 1 for size in shape if size > 1)
        return self.ici_bandwidth * links / self.ports if links else math.inf


_DOCS = "https://cloud.google.com/tpu/docs/"
# Links: half of what the pages give for both directions together. HBM is what they call GB and their tools GiB.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * 2**30, 275e12, 1.2e12, 300e9, 6, 4, _DOCS + "v4", mode="megacore"),
        Chip("v5e", 16 * 2**30, 197e12, 0.81e12, 200e9, 4, 16, _DOCS + "v5e"),
        Chip("v5p", 95 * 2**30, 459e12, 2.765e12, 600e9, 6, 4, _DOCS + "v5p"),
        Chip("v6e", 32 * 2**30, 918e12, 1.6e12, 400e9, 4, 16, _DOCS + "v6e"),
        Chip("tpu7x", 192 * 2**30, 2307e12, 7.4e12, 600e9, 6, 4, _DOCS + "tpu7x", devices=2),
    )
}


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
