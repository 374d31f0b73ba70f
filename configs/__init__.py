"""The configurations of the package (`clara_jax.configs`), by the paths that commands in a checkout name."""
