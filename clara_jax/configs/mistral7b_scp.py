"""Compression learning (SCP, the paper's first stage) on Mistral-7B-Instruct-v0.2: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/mistral7b_scp --config configs/mistral7b_scp.py:rate=16,data=DIR

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of salient compressor pretraining; see `configs.common.paper` for the argument."""
    return common.paper("scp", arg, common.MISTRAL_7B)
