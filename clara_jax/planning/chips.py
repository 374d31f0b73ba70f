"""Peak figures of TPU chips, as their maker publishes them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, which JAX may see as several devices that share these figures equally.

    Attributes:
      hbm_bytes: memory of a chip.
      flops: dense bfloat16 FLOP/s of a chip.
      hbm_bandwidth: bytes/s of a chip.
      ici_bandwidth: bytes/s that a chip can send to its neighbours in the slice, over all links together.
      source: the public page the figures are from.
    """

    name: str
    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    source: str
    devices: int = 1


_DOCS = "https://cloud.google.com/tpu/docs/"
# The pages give the links' bandwidth in Gbit/s for a chip: 2400, 1600, 4800, 3584 and 9600.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * 2**30, 275e12, 1.2e12, 300e9, _DOCS + "v4"),
        Chip("v5e", 16 * 2**30, 197e12, 0.81e12, 200e9, _DOCS + "v5e"),
        Chip("v5p", 95 * 2**30, 459e12, 2.765e12, 600e9, _DOCS + "v5p"),
        Chip("v6e", 32 * 2**30, 918e12, 1.6e12, 448e9, _DOCS + "v6e"),
        Chip("tpu7x", 192 * 2**30, 2307e12, 7.4e12, 1200e9, _DOCS + "tpu7x", devices=2),
    )
}
