"""The functions of `clara_jax.configs.common`, for configuration files of before that import them from here."""

from clara_jax.configs.common import *  # noqa: F403
