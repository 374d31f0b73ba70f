"""Names of fields before they were in groups: each is accepted for one version more; and fields that came later.

A stage's ``learning_rate`` is now ``optimizer.learning_rate``. Configurations and command lines that use an old name
get a warning; a ``config.json`` that an earlier version wrote is read without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara_jax.errors import ClaraError, warn_line
from clara_jax.method.stages import STAGES
from clara_jax.training.config_checks import stage_kind


def _paths(groups: Mapping[str, str]) -> dict[str, str]:
    """Return old name -> path, of names by their group, "old:new" where they changed."""
    pairs = ((group, *name.partition(":")[::2]) for group, names in groups.items() for name in names.split())
    return {old: f"{group}.{new or old}" for group, old, new in pairs}


STAGE_NAMES = _paths(
    {
        "data": (
            "train_data:train train_weights:weights train_limit:limit doc_max_length compress_rate further_rates crop "
            "documents memories buckets pack"
        ),
        "optimizer": (
            "steps epochs batch_size accumulate learning_rate schedule minimum_ratio warmup weight_decay betas eps "
            "clip_norm"
        ),
        "objective": (
            "ce_over mse_weight mse_reduction marginal_weight scaffold scaffold_end scaffold_schedule scaffold_steps"
        ),
        "topk": (
            "top_k:k candidates topk_method:method score_normalization temperature temperature_schedule "
            "temperature_end temperature_steps temperature_values learn_temperature"
        ),
        "evaluation": (
            "eval_data:data eval_limit:limit eval_every:every eval_batches:batches eval_answers:answers answer_tokens "
            "eval_controls:controls eval_gradients:gradients"
        ),
        "saving": "save_every:every log_every",
    }
)
RUN_NAMES = _paths(
    {
        "saving": "save_minutes:minutes keep best",
        "reporting": "progress progress_seconds tensorboard profile show require_progress",
    }
)

# Fields that stages have gained since, with the value by which those of before worked.
STAGE_ADDED: dict[str, Any] = {"reset": []}


def in_groups(values: Mapping[str, Any], paths: Mapping[str, str], where: str, warn: bool = True) -> dict[str, Any]:
    """Return the fields of a section with those that have old names in their groups.

    Args:
      values: by name, groups as mappings.
      paths: `STAGE_NAMES` or `RUN_NAMES`.
      where: the section, for messages: "config.scp".
      warn: whether an old name gets a warning.

    Raises:
      ClaraError: a field that is given by both of its names.
    """
    result = {name: value for name, value in values.items() if name not in paths}
    for old in values.keys() & paths.keys():
        group, _, new = paths[old].partition(".")
        fields = result.get(group, {})
        if not isinstance(fields, Mapping):
            raise ClaraError(f"{where}.{group} is {fields!r}; it must be a section")
        if new in fields:
            raise ClaraError(f"{where}.{old} and {where}.{group}.{new} are one field; give the latter alone")
        result[group] = {**fields, new: values[old]}
    if warn:
        for old in values:
            if old in paths:
                _warn(f"{where}.{old}", f"{where}.{paths[old]}")
    return result


def run_in_groups(values: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Return the content of a configuration's ConfigDict, as a mapping, with all fields in their groups."""
    stages = {
        name: in_groups(section, STAGE_NAMES, f"{where}.{name}")
        for name, section in values.items()
        if stage_kind(name) in STAGES and isinstance(section, Mapping)
    }
    return in_groups({**values, **stages}, RUN_NAMES, where)


def json_in_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` with all fields in their groups, whichever version has written it."""
    values = in_groups(values, RUN_NAMES, "config", warn=False)
    stages = values.get("stages", ())
    if isinstance(stages, list) and all(isinstance(stage, Mapping) for stage in stages):
        values["stages"] = [
            STAGE_ADDED | in_groups(stage, STAGE_NAMES, f"config.{stage.get('name')}", warn=False) for stage in stages
        ]
    return values


def path_of(path: str) -> str:
    """Return the path of a field, below the configuration, that may be given by an old name; then warn.

    Args:
      path: "scp.learning_rate", "keep".
    """
    section, dot, field = path.partition(".")
    if dot and stage_kind(section) in STAGES and field in STAGE_NAMES:
        new = f"{section}.{STAGE_NAMES[field]}"
    elif path in RUN_NAMES:
        new = RUN_NAMES[path]
    else:
        return path
    _warn(f"config.{path}", f"config.{new}")
    return new


def _warn(old: str, new: str) -> None:
    warn_line(f"{old} is now {new}; the old name will go in the next version")
