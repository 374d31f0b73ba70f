"""Names of fields before they were in groups: each is accepted for one version more; and fields that came later.

A stage's ``learning_rate`` is now ``optimizer.learning_rate``. Configurations and command lines that use an old name
get a warning; a ``config.json`` that an earlier version wrote is read without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara_jax.config_checks import group_paths, in_groups, warn_old_name
from clara_jax.data.synthetic_world import SYNTHETIC_NAMES
from clara_jax.method.stages import STAGES, stage_kind
from clara_jax.model.quantization import NONE

STAGE_NAMES = group_paths(
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
RUN_NAMES = group_paths(
    {
        "saving": "save_minutes:minutes keep best",
        "reporting": "progress progress_seconds tensorboard profile show require_progress",
    }
)

# Fields that stages, and the section of the model, have gained since, with the value by which those of before worked.
STAGE_ADDED: dict[str, Any] = {"reset": []}
STAGE_TOPK_ADDED: dict[str, Any] = {"search_every": None}
MODEL_ADDED: dict[str, Any] = {"quantization": NONE}


def run_in_groups(values: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Return the content of a configuration's ConfigDict, as a mapping, with all fields in their groups."""
    stages = {
        name: in_groups(section, STAGE_NAMES, f"{where}.{name}")
        for name, section in values.items()
        if stage_kind(name) in STAGES and isinstance(section, Mapping)
    }
    return in_groups({**values, **stages, **_synthetic(values, where)}, RUN_NAMES, where)


def json_in_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` with all fields in their groups, whichever version has written it."""
    values = in_groups({**values, **_synthetic(values, "config", warn=False)}, RUN_NAMES, "config", warn=False)
    if isinstance(values.get("model"), Mapping):
        values["model"] = MODEL_ADDED | dict(values["model"])
    stages = values.get("stages", ())
    if isinstance(stages, list) and all(isinstance(stage, Mapping) for stage in stages):
        values["stages"] = [
            STAGE_ADDED | in_groups(stage, STAGE_NAMES, f"config.{stage.get('name')}", warn=False) for stage in stages
        ]
        for stage in values["stages"]:
            if isinstance(stage.get("topk"), Mapping):
                stage["topk"] = STAGE_TOPK_ADDED | dict(stage["topk"])
    return values


def _synthetic(values: Mapping[str, Any], where: str, warn: bool = True) -> dict[str, Any]:
    """Return the section of the synthetic corpus with its fields in groups, by its name; nothing without one."""
    section = values.get("synthetic")
    if not isinstance(section, Mapping):
        return {}
    return {"synthetic": in_groups(section, SYNTHETIC_NAMES, f"{where}.synthetic", warn)}


def path_of(path: str) -> str:
    """Return the path of a field, below the configuration, that may be given by an old name; then warn.

    Args:
      path: "scp.learning_rate", "synthetic.name_words", "keep".
    """
    section, dot, field = path.partition(".")
    if dot and stage_kind(section) in STAGES and field in STAGE_NAMES:
        new = f"{section}.{STAGE_NAMES[field]}"
    elif section == "synthetic" and field in SYNTHETIC_NAMES:
        new = f"{section}.{SYNTHETIC_NAMES[field]}"
    elif path in RUN_NAMES:
        new = RUN_NAMES[path]
    else:
        return path
    warn_old_name(f"config.{path}", f"config.{new}")
    return new
