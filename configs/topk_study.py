"""The configuration `clara_jax.configs.topk_study`, by its path in a checkout."""

from clara_jax.configs.topk_study import get_config as get_config
