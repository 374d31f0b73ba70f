r"""End-to-end training of query reasoner and generator on Phi-4-mini-instruct: Table 10 of the paper.

    python -m clara_jax.train --workdir runs/phi4_mini_end_to_end \
        --config configs/phi4_mini_end_to_end.py:rate=16,data=DIR,start=runs/phi4_mini_instruct

The arguments are those of `configs.common.paper`.
"""

from clara_jax.configs import common


def get_config(arg=None):
    """Return the configuration of end-to-end training; see `configs.common.paper` for the argument."""
    return common.paper("end_to_end", arg, common.PHI4_MINI)
