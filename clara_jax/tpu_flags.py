"""Flags for XLA's compiler for TPUs, set before libtpu is loaded."""

import os

# Left to itself, XLA for TPUs multiplies with a kernel that is split over "data" piece by piece, and for each piece
# reads, rounds and writes the sum so far: twice a step's memory traffic, and less precise (docs/aot.md). Gathered as a
# whole, the kernel arrives while other work runs.
_GATHER = "--xla_jf_spmd_threshold_for_windowed_einsum_mib"


def set_defaults() -> None:
    """Add the flags to ``LIBTPU_INIT_ARGS``, except those that it has; libtpu reads the variable once, when loaded."""
    if _GATHER not in os.environ.get("LIBTPU_INIT_ARGS", ""):
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_GATHER}=1000000".strip()
