"""One experiment a file, each with ``get_config(arg)``; see `clara_jax.training.config` for what the fields mean."""
