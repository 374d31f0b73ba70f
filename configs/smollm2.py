"""The configuration `clara_jax.configs.smollm2`, by its path in a checkout."""

from clara_jax.configs.smollm2 import get_config as get_config
