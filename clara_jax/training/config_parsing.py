"""Parsing of configurations: from a config file or JSON to a checked `RunConfig`, and back to JSON.

`resolve` reads the `ml_collections.ConfigDict` of a config file. `to_json` writes the resolved configuration into the
run directory, `from_json` reads it back.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.method.stages import STAGES
from clara_jax.training.config import RunConfig
from clara_jax.training.config_checks import nearest
from clara_jax.training.stage_config import StageConfig, stage_kind


def resolve(config: Any) -> RunConfig:
    """Return the checked `RunConfig` of a config file's `ml_collections.ConfigDict`.

    ``steps = 0`` and ``epochs = 0`` mean "not given": a flag cannot say None.

    Raises:
      ClaraError: an unknown field (with the nearest known name), a missing one, a wrong type, a value out of range.
    """
    try:
        values = dict(config.to_dict())
    except Exception as error:  # ml_collections: a required placeholder without value
        raise ClaraError(f"config: {error}") from error
    names = _convert(values.pop("stages", ()), tuple[str, ...], "config.stages")
    sections = {name: values.pop(name) for name in list(values) if stage_kind(name) in STAGES}
    known = (*(field.name for field in dataclasses.fields(RunConfig)), *STAGES)
    for name in values:
        if name not in known:
            raise ClaraError(f"config.{name}: there is no such field{nearest(name, known)}")
    # A section that ``stages`` leaves out is checked too: a slip in it would wait for the day it is switched on.
    stages = {name: _stage(name, section) for name, section in sections.items()}
    for name in names:
        if stage_kind(name) not in STAGES:
            raise ClaraError(f"config.stages: there is no stage {name!r}{nearest(name, STAGES)}")
        if name not in stages:
            raise ClaraError(f"config.stages names {name}, but there is no section config.{name}")
    values = {name: _convert(value, _hints(RunConfig)[name], f"config.{name}") for name, value in values.items()}
    return RunConfig(stages=tuple(stages[name] for name in names), **values)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return every field as a JSON value: dicts, lists, strings, numbers, None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def from_json(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `to_json` gave, with all of `resolve`'s checks."""
    return _build(RunConfig, values, "config")


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _stage(name: str, section: Any) -> StageConfig:
    where = f"config.{name}"
    if not isinstance(section, Mapping):
        raise ClaraError(f"{where} is {section!r}; it must be a section (a ConfigDict)")
    unset = {field: None for field in ("steps", "epochs") if section.get(field) == 0}
    return _build(StageConfig, {**section, **unset, "name": name}, where)


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass from a mapping, field by field."""
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            raise ClaraError(f"{where}.{name}: there is no such field{nearest(str(name), hints)}")
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ClaraError(f"{where}.{field.name} is missing")
    return cls(**{name: _convert(value, hints[name], f"{where}.{name}") for name, value in values.items()})


_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type of ``hint``, or raise a `ClaraError`. Integers pass as numbers, lists as tuples."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ClaraError(f"{where} is {value!r}; it must be a section")
        return _build(hint, value, where)
    if isinstance(hint, types.UnionType):  # X | None
        (inner,) = (option for option in typing.get_args(hint) if option is not type(None))
        return None if value is None else _convert(value, inner, where)
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, tuple | list):
            raise ClaraError(f"{where} is {value!r}; it must be a tuple")
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(items) != len(value):
            raise ClaraError(f"{where} is {value!r}; it must hold {len(items)} values")
        return tuple(_convert(v, item, f"{where}[{i}]") for i, (v, item) in enumerate(zip(value, items, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ClaraError(f"{where} is {value!r}; it must be {_WORDS[hint]}")
    return value
