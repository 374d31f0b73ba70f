"""Compression learning (SCP, the paper's first stage) on Phi-4-mini-instruct: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/phi4_mini_scp --config configs/phi4_mini_scp.py:rate=16,data=DIR

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of salient compressor pretraining; see `configs.common.paper` for the argument."""
    return common.paper("scp", arg, common.PHI4_MINI)
