"""The configuration `clara_jax.configs.phi4_mini_scp`, by its path in a checkout."""

from clara_jax.configs.phi4_mini_scp import get_config as get_config
