"""The configuration `clara_jax.configs.mistral7b_instruct`, by its path in a checkout."""

from clara_jax.configs.mistral7b_instruct import get_config as get_config
