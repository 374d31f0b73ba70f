"""The configuration `clara_jax.configs.mistral7b_end_to_end`, by its path in a checkout."""

from clara_jax.configs.mistral7b_end_to_end import get_config as get_config
