r"""End-to-end training of query reasoner and generator on Mistral-7B-Instruct-v0.2: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/mistral7b_end_to_end \
        --config configs/mistral7b_end_to_end.py:rate=16,data=DIR,start=runs/mistral7b_instruct

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of end-to-end training; see `configs.common.paper` for the argument."""
    return common.paper("end_to_end", arg, common.MISTRAL_7B)
