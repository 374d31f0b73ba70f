r"""Instruction tuning of compressor and generator on Phi-4-mini-instruct: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/phi4_mini_instruct \
        --config configs/phi4_mini_instruct.py:rate=16,data=DIR,start=runs/phi4_mini_scp

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of instruction tuning; see `configs.common.paper` for the argument."""
    return common.paper("instruct", arg, common.PHI4_MINI)
