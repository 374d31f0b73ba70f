"""The configuration `clara_jax.configs.smoke`, by its path in a checkout."""

from clara_jax.configs.smoke import get_config as get_config
