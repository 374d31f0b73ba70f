"""The configuration `clara_jax.configs.demo`, by its path in a checkout."""

from clara_jax.configs.demo import get_config as get_config
