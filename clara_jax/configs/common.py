"""Functions that the config files share: arguments, and sections of every field, so that flags can change each."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict, config_dict

from clara_jax.config_checks import in_groups
from clara_jax.errors import ClaraError, did_you_mean
from clara_jax.training.config import RunConfig
from clara_jax.training.old_names import STAGE_NAMES, run_in_groups
from clara_jax.training.stage_config import StageConfig

MISTRAL_7B = "mistralai/Mistral-7B-Instruct-v0.2"
PHI4_MINI = "microsoft/Phi-4-mini-instruct"

# Table 10 of the paper. The sizes of LoRA, the optimizer and λ are the defaults of `ClaraConfig` and `StageConfig`.
COMPRESSION = dict(
    optimizer=dict(epochs=1.0, batch_size=128, learning_rate=1e-4, warmup=0.03, clip_norm=1.0),
    objective=dict(mse_weight=0.1),
)
END_TO_END = dict(
    optimizer=dict(epochs=1.0, batch_size=32, learning_rate=5e-6, warmup=0.03, clip_norm=1.0),
    topk=dict(candidates=20, k=5, method="iterative", temperature=0.02),  # Algorithm 1
)

# Our configs choose by the relaxed sort: of all estimators it has answers as good as any and the better ranking after
# the first place (docs/topk.md, "Which one is best").
RELAXED_SORT = dict(method="neuralsort", temperature=0.1)  # of the group topk

# What the released scripts and code have where Table 10 says something else, or nothing.
RELEASED_BETAS = (0.9, 0.95)
RELEASED_COMPRESSION = dict(
    optimizer=dict(betas=RELEASED_BETAS, schedule="cosine_with_minimum", minimum_ratio=0.1),
    topk=dict(k=5),  # its evaluation has the model of either stage read five documents
)
RELEASED_END_TO_END = dict(optimizer=dict(betas=RELEASED_BETAS, schedule="constant", warmup=0.0))
RELEASED_MAX_LENGTH = dict(scp=2048, instruct=2048, end_to_end=1024)

# What the backward pass of a 7B model keeps, and in how many parts a batch is computed, on the smallest slice of chips
# that was compiled for (docs/results.md, "What a step of Mistral-7B takes on TPUs").
ON_CHIPS = {
    "v5e": dict(scp=("mlp", 1), instruct=("products", 4), end_to_end=("full", 1)),
    "v6e": dict(scp=("mlp", 1), instruct=("products", 4), end_to_end=("full", 1)),
    "v5p": dict(scp=("products", 1), instruct=("products", 4), end_to_end=("full", 1)),
}


class Arguments(Protocol):
    """The values of a configuration's argument, as attributes; each has the type of its default."""

    def __getattr__(self, name: str, /) -> Any: ...

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default where there is no such key."""
        ...


def parse_arg(arg: str | None, **defaults: Any) -> Arguments:
    """Parse the argument after the colon of ``--config=file.py:key=value,key=value``.

    Args:
      arg: the text after the colon, or None.
      defaults: the known keys. A value takes its default's type: int, float or str.

    Raises:
      ClaraError: an unknown key, or a value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or key not in defaults:
            problem = "there is no such key" if equals else "write key=value"
            hint = (equals and did_you_mean(key, defaults)) or f"; known are {', '.join(defaults)}"
            raise ClaraError(f"config argument {part!r}: {problem}{hint}")
        kind = type(defaults[key])
        try:
            values[key] = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ClaraError(f"config argument {part!r}: {key} must be {what}") from None
    return ConfigDict(values)


def choose(key: str, value: str, choices: Mapping[str, Any]) -> Any:
    """Return ``choices[value]``, or raise a `ClaraError` that names the choices."""
    if value not in choices:
        raise ClaraError(f"config argument {key}={value}: it must be one of {', '.join(choices)}")
    return choices[value]


def merged(*sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections as one, their groups field by field; of what several give the last counts."""
    result: dict[str, Any] = {}
    for section in sections:
        for name, value in section.items():
            result[name] = merged(result.get(name, {}), value) if isinstance(value, Mapping) else value
    return result


def section(cls: type, **values: Any) -> ConfigDict:
    """Return a section with every field of a dataclass of the configuration, and with its groups.

    A field has its default, or the value that is given. One that may be None becomes a placeholder, so that a flag can
    fill it.
    """
    hints, result = typing.get_type_hints(cls), ConfigDict()
    for field in dataclasses.fields(cls):
        if field.name in ("name", "stages"):  # separate
            continue
        if dataclasses.is_dataclass(hint := hints[field.name]) and isinstance(hint, type):
            result[field.name] = section(hint, **values.pop(field.name, {}))
            continue
        value = values.pop(field.name, field.default)
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if type(None) in typing.get_args(hint):
            result[field.name] = config_dict.placeholder(typing.get_origin(kinds[0]) or kinds[0])
        if value is not None:
            result[field.name] = value
        elif field.name not in result:
            raise TypeError(f"{cls.__name__}.{field.name} may not be None")
    if values:
        raise TypeError(f"{cls.__name__} has no field {', '.join(values)}")
    return result


def run(stages: Mapping[str, Mapping[str, Any]], **values: Any) -> ConfigDict:
    """Return a whole config.

    Args:
      stages: by name, in order, each with the fields that differ from the defaults, in their groups.
      values: fields of the run, and its sections: model, clara, ...

    Old names of fields get a warning.
    """
    config = section(RunConfig, **run_in_groups(values))
    config.stages = tuple(stages)
    for name, fields in stages.items():
        config[name] = section(StageConfig, **in_groups(fields, STAGE_NAMES, f"config.{name}"))
    return config


def shared_data() -> str:
    """Return the folder of real records: ``$CLARA_SHARED_DATA``, else ``../shared/data`` beside a checkout, or data."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    beside = os.path.join(os.path.dirname(checkout), "shared", "data")
    return os.environ.get("CLARA_SHARED_DATA") or (beside if os.path.isdir(beside) else "data")


def paper(stage: str, arg: str | None, base: str) -> ConfigDict:
    """Return one stage of the paper's recipe (Table 10) on one of its two backbones.

    Arguments, as ``key=value,...``:

    - ``rate``: the compress rate (16); the paper has 4, 16, 32, 64, 128 and 256;
    - ``data``: the directory of the stage's training file (data); held-out files are named by
      ``--config.<stage>.evaluation.data``;
    - ``base``: another path or name of the base model (default: the paper's, or what ``start`` was trained on);
    - ``start``: the run directory or checkpoint to start from, as instruct and end_to_end do;
    - ``like``: "paper" (default), Table 10; "release": where the released scripts differ from it, as they do
      (docs/training.md#like-the-paper-like-the-release);
    - ``chip``: "v5e", "v6e" or "v5p": what is kept for the backward pass, and the parts of a batch, as is best on the
      smallest slice of them (`ON_CHIPS`); default: remat dots, in one part;
    - ``schedule``, for end_to_end: "cosine" (the paper's) or "constant" (the released scripts'); default by ``like``.

    Like the released code, instruct starts with a fresh adapter of the generator.
    """
    keys = dict(rate=16, data="data", base="", start="", like="paper", chip="")
    if stage == "end_to_end":
        keys["schedule"] = ""
    args = parse_arg(arg, **keys)
    as_released = choose("like", args.like, dict(paper=False, release=True))
    remat, parts = choose("chip", args.chip, ON_CHIPS)[stage] if args.chip else ("dots", 1)
    train = dict(
        scp="stage1_pretrain*.train.jsonl",
        instruct="stage1_2_instruction.train.jsonl",
        end_to_end="stage2_end_to_end.train.jsonl",
    )
    schedule = args.get("schedule") or ""
    known = dict(cosine="cosine", constant="constant")
    scheduled = dict(schedule=choose("schedule", schedule, known)) if schedule else {}
    fields = merged(
        END_TO_END if stage == "end_to_end" else COMPRESSION,
        (RELEASED_END_TO_END if stage == "end_to_end" else RELEASED_COMPRESSION) if as_released else {},
        dict(
            optimizer=dict(accumulate=parts, **scheduled),
            reset=("lora/generator",) if stage == "instruct" else (),
            # What the paper leaves open: batches of few shapes, so that less of a step is padding (docs/results.md).
            # Packing would do better in scp where there are several rows for each device: that depends on the mesh.
            data=dict(train=(os.path.join(args.data, train[stage]),), buckets=4),
        ),
    )
    return run(
        {stage: fields},
        model=dict(base=args.base or ("" if args.start else base), precision="bfloat16", remat=remat),
        clara=dict(doc_max_length=256, compress_rate=args.rate, lora_rank=16, lora_alpha=32.0, lora_dropout=0.1)
        | (dict(max_length=RELEASED_MAX_LENGTH[stage]) if as_released else {}),
        initial_checkpoint=args.start or None,
    )
