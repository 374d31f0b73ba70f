"""The configuration `clara_jax.configs.phi4_mini_instruct`, by its path in a checkout."""

from clara_jax.configs.phi4_mini_instruct import get_config as get_config
