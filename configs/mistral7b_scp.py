"""The configuration `clara_jax.configs.mistral7b_scp`, by its path in a checkout."""

from clara_jax.configs.mistral7b_scp import get_config as get_config
