"""Parsing of configurations: from a config file or JSON to a checked `RunConfig`, and back to JSON.

`resolve` reads the `ml_collections.ConfigDict` of a config file. `to_json` writes the resolved configuration into the
run directory, `from_json` reads it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clara_jax.config_checks import field_paths, nearest, nearest_field, require
from clara_jax.errors import ClaraError
from clara_jax.method.stages import STAGES, stage_kind
from clara_jax.training.config import RunConfig
from clara_jax.training.old_names import RUN_NAMES, json_in_groups, run_in_groups
from clara_jax.training.stage_config import StageConfig


def resolve(config: Any) -> RunConfig:
    """Return the checked `RunConfig` of a config file's `ml_collections.ConfigDict`.

    ``steps = 0`` and ``epochs = 0`` mean "not given": a flag cannot say None. Old names of fields get a warning.

    Raises:
      ClaraError: an unknown field (with the nearest known name), a missing one, a wrong type, a value out of range.
    """
    try:
        values = dict(config.to_dict())
    except Exception as error:  # ml_collections: a required placeholder without value
        raise ClaraError(f"config: {error}") from error
    values = run_in_groups(values)
    names = values.pop("stages", ())
    named = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    require(named, "", "stages", names, "it must be a tuple of names")
    sections = {name: values.pop(name) for name in list(values) if stage_kind(name) in STAGES}
    known = (*(field.name for field in dataclasses.fields(RunConfig)), *STAGES)
    for name in values:
        if name not in known:
            near = nearest_field(name, known, field_paths(RunConfig) | RUN_NAMES, "config")
            raise ClaraError(f"config.{name}: there is no such field{near}")
    # A section that ``stages`` leaves out is checked too: a slip in it would wait for the day it is switched on.
    stages = {name: _stage(name, section) for name, section in sections.items()}
    for name in names:
        if stage_kind(name) not in STAGES:
            raise ClaraError(f"config.stages: there is no stage {name!r}{nearest(name, STAGES)}")
        if name not in stages:
            raise ClaraError(f"config.stages names {name}, but there is no section config.{name}")
    return RunConfig(stages=tuple(stages[name] for name in names), **values)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return every field as a JSON value: dicts, lists, strings, numbers, None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def from_json(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `to_json` gave, in this version or one before, with all of `resolve`'s checks."""
    values = json_in_groups(values)
    stages: Any = values.get("stages")
    good = isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)
    require(good, "", "stages", stages, "it must be a list of sections")
    return RunConfig(**{**values, "stages": tuple(StageConfig(**stage) for stage in stages)})


def _stage(name: str, section: Any) -> StageConfig:
    if not isinstance(section, Mapping):
        raise ClaraError(f"config.{name} is {section!r}; it must be a section (a ConfigDict)")
    optimizer = section.get("optimizer", {})
    if isinstance(optimizer, Mapping):
        unset = {field: None for field in ("steps", "epochs") if optimizer.get(field) == 0}
        section = {**section, "optimizer": {**optimizer, **unset}}
    return StageConfig(**{**section, "name": name})
