r"""Instruction tuning of compressor and generator on Mistral-7B-Instruct-v0.2: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/mistral7b_instruct \
        --config configs/mistral7b_instruct.py:rate=16,data=DIR,start=runs/mistral7b_scp

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of instruction tuning; see `configs.common.paper` for the argument."""
    return common.paper("instruct", arg, common.MISTRAL_7B)
