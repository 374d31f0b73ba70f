"""Precisions: the dtypes of stored weights, of the products' inputs and of activations. Needs no JAX."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from clara_jax.errors import ClaraError

AUTO = "auto"
# Names in Linux's /proc/cpuinfo of instructions that multiply bfloat16 and sum in float32: Intel's and AMD's matrix and
# vector instructions.
INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16"})


class Precision(NamedTuple):
    """Dtypes by name.

    Attributes:
      stored: of the base model's parameters; adapters and added rows are float32 whatever it is.
      operands: of what is multiplied with the base's weights, and in attention.
      carried: of everything between two products. Norms, softmax, losses and scores are float32 whatever it is.
    """

    stored: str
    operands: str
    carried: str


PRECISIONS = {
    "bfloat16": Precision("bfloat16", "bfloat16", "bfloat16"),
    "float32": Precision("float32", "float32", "float32"),
    "mixed": Precision("bfloat16", "bfloat16", "float32"),
}
CHOICES = (AUTO, *PRECISIONS)  # valid in configurations and commands


def check(precision: str) -> None:
    """Raise an error for an unknown precision.

    Raises:
      ClaraError: ``precision`` is none of `PRECISIONS`; the message names them.
    """
    if precision not in PRECISIONS:
        raise ClaraError(f"precision: {precision!r} must be one of {', '.join(PRECISIONS)}")


def resolve(precision: str, platform: str) -> str:
    """Return a name of `PRECISIONS`: "auto" becomes the fastest that is sound on the machine.

    Args:
      precision: one of `CHOICES`.
      platform: of the devices, as JAX names it: "cpu", "gpu", "tpu".
    """
    if precision != AUTO:
        return precision
    if platform != "cpu":
        return "bfloat16"
    return "mixed" if has_instructions() else "float32"


@cache
def has_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this machine's processor has one of `INSTRUCTIONS`; False where the system does not list them."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # no Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ())
    return not INSTRUCTIONS.isdisjoint(flags)
