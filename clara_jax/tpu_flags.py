"""Flags for XLA's compiler for TPUs, set before libtpu is loaded; and libtpu where there are no TPUs."""

import glob
import importlib.util
import os
import sys

# Left to itself, XLA for TPUs multiplies with a kernel that is split over "data" piece by piece, and for each piece
# reads, rounds and writes the sum so far: twice a step's memory traffic, and less precise (docs/aot.md). Gathered as a
# whole, the kernel arrives while other work runs.
_GATHER = "--xla_jf_spmd_threshold_for_windowed_einsum_mib"
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")  # up to v4, and since


def set_defaults() -> None:
    """Add the flags to ``LIBTPU_INIT_ARGS``, except those that it has; libtpu reads the variable once, when loaded."""
    if _GATHER not in os.environ.get("LIBTPU_INIT_ARGS", ""):
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_GATHER}=1000000".strip()


def skip_absent() -> None:
    """Compute on CPUs where libtpu is installed to compile for TPUs, and there is neither a TPU nor a GPU's plugin.

    JAX would start libtpu to look for TPUs; it searches the network and prints lines of its own before any of ours.
    Nothing changes where ``JAX_PLATFORMS`` is set, or where JAX has begun.
    """
    if os.environ.get("JAX_PLATFORMS") or any(map(glob.glob, _DEVICES)):
        return
    if importlib.util.find_spec("libtpu") is None or importlib.util.find_spec("jax_plugins") is not None:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the variable, and looks for devices when it is first asked for them
        sys.modules["jax"].config.update("jax_platforms", "cpu")
