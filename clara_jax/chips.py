"""Accelerators: their peak figures, as published, and TPU slices by name, whose chips need not be present.

Of TPU chips the figures are all that a plan needs, of GPUs the FLOP/s.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

from clara_jax import tpu_flags
from clara_jax.errors import ClaraError


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
      kinds: how JAX calls its devices; the beginnings of ``device_kind``.
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
    kinds: tuple[str, ...]
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
        Chip("v4", 32 * 2**30, 275e12, 1.2e12, 300e9, 6, 4, _DOCS + "v4", ("TPU v4",), mode="megacore"),
        Chip("v5e", 16 * 2**30, 197e12, 0.81e12, 200e9, 4, 16, _DOCS + "v5e", ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 95 * 2**30, 459e12, 2.765e12, 600e9, 6, 4, _DOCS + "v5p", ("TPU v5", "TPU v5p")),
        Chip("v6e", 32 * 2**30, 918e12, 1.6e12, 400e9, 4, 16, _DOCS + "v6e", ("TPU v6 lite", "TPU v6e")),
        Chip("tpu7x", 192 * 2**30, 2307e12, 7.4e12, 600e9, 6, 4, _DOCS + "tpu7x", ("TPU7x",), devices=2),
    )
}

# Dense bfloat16 FLOP/s of GPUs by the beginning of their kind, from NVIDIA's data sheets, without sparsity.
_GPUS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,  # SXM
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
}
_PEAKS: dict[str, float | None] = {kind: chip.flops / chip.devices for chip in CHIPS.values() for kind in chip.kinds}
_PEAKS |= _GPUS | {"TPU v4 lite": None}  # an inference chip, of which no figure is at hand

# For libtpu without a TPU: no query of the metadata server, no warnings about that, and several processes may compile
# at once. The names of host and accelerator do not change the compiled programs.
ABSENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
ABSENT |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a JAX device, by its ``device_kind``; None for CPUs and unknown ones.

    A run in float32 is measured against the same peak, and cannot come near it.
    """
    return _PEAKS.get(max((kind for kind in _PEAKS if device_kind.startswith(kind)), key=len, default=""))


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
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


def topology_devices(name: str) -> list:
    """Return the devices of a topology, for compilation alone.

    Raises:
      ClaraError: as `parse_topology`; libtpu is missing; libtpu does not know the topology.
    """
    chip, _ = parse_topology(name)
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
