"""Configurations for tests."""

import dataclasses

from clara_jax.configs.common import merged
from clara_jax.training.stage_config import StageConfig


def stage(name="scp", **fields):
    """A stage of four steps, with some fields of its groups; each group is a dict."""
    return StageConfig(**merged(dict(name=name, data=dict(train=("a.jsonl",)), optimizer=dict(steps=4)), fields))


def changed(section, **fields):
    """A section with other values of some fields; those of its groups are given as dicts."""
    inner = {
        name: changed(getattr(section, name), **value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return dataclasses.replace(section, **inner)
