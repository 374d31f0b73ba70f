"""PEFT exports: one adapter folder for each role, and the embedding tables that they share.

DIR/export.json                 the method's numbers
DIR/compressor/                 adapter_config.json, adapter_model.safetensors
DIR/query_reasoner/, DIR/generator/
DIR/embeddings.safetensors      whole tables, the added tokens at their end; and the memory map of a model that has one
DIR/tokenizer/                  with the added tokens
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np
from safetensors.numpy import save_file

from clara_jax.checkpoints.description import Description
from clara_jax.checkpoints.names import BASE_TABLES, EMBEDDING, HEAD, load_adapters
from clara_jax.errors import ClaraError
from clara_jax.formats.hugging_face import write_json
from clara_jax.formats.json_file import read_object
from clara_jax.formats.safetensors_files import map_tensors
from clara_jax.model.quantization import NONE

KIND = "clara_jax PEFT export"
FILES = (ABOUT, TABLES) = ("export.json", "embeddings.safetensors")  # a directory that holds them is such an export
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REMEDY = "give the folder that python -m clara_jax.convert export --format peft made"


def write_peft(
    directory: Path,
    about: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, np.ndarray]],
    tables: Mapping[str, np.ndarray],
    base: str,
    lora: Mapping[str, Any],
) -> None:
    """Write an export, except for its tokenizer.

    Args:
      directory: an existing, empty folder.
      about: content of ``export.json``.
      adapters: PEFT tensors by plain name (`clara_jax.checkpoints.names.export_lora`), by role.
      tables: "model.embed_tokens.weight" and, where untied, "lm_head.weight"; of a memory map "memory_map.scale",
        "memory_map.center" and "memory_map.shift".
      base: value of ``base_model_name_or_path``.
      lora: "r", "lora_alpha", "lora_dropout" and "target_modules".
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        **lora,
    }
    for role, state in adapters.items():
        (directory / role).mkdir()
        write_json(directory / role / CONFIG, config)
        named = {_PREFIX + name: np.ascontiguousarray(array) for name, array in state.items()}
        save_file(named, directory / role / WEIGHTS, metadata={"format": "pt"})
    save_file(dict(tables), directory / TABLES, metadata={"format": "pt"})
    write_json(directory / ABOUT, {"kind": KIND, **about})


def describe(directory: Path) -> Description:
    """Return the description that `write_peft` wrote, with the scale that the adapters' configurations have.

    Raises:
      ClaraError: a file that is missing, damaged or of another kind.
    """
    about = read_object(directory / ABOUT, _REMEDY)
    if about.get("kind") != KIND:
        raise ClaraError(f'{directory / ABOUT}: "kind" {about.get("kind")!r} is not {KIND!r}; {_REMEDY}')
    for name in ("base", "clara", "precision", "stage", "trained"):
        if name not in about:
            raise ClaraError(f'{directory / ABOUT}: "{name}" is missing; {_REMEDY}')
    clara = about["clara"]
    if not isinstance(clara, dict):
        raise ClaraError(f'{directory / ABOUT}: "clara" holds no numbers; {_REMEDY}')
    if not isinstance(about["base"], str) or not isinstance(about["trained"], list):
        raise ClaraError(f'{directory / ABOUT}: "base" is no name, or "trained" no list; {_REMEDY}')
    scales = {
        path.parent.name: _scale(path, read_object(path, _REMEDY), clara.get("lora_rank"))
        for path in sorted(directory.glob(f"*/{CONFIG}"))
    }
    if scales:
        role, scale = next(iter(scales.items()))
        for other, value in scales.items():
            if not math.isclose(value, scale, rel_tol=1e-6):
                raise ClaraError(
                    f'{directory / other / CONFIG}: "lora_alpha" scales the adapter by {value:g}, that of {role} is '
                    f"scaled by {scale:g}; one model has one scale: multiply lora_B by the ratio, set lora_alpha back"
                )
        alpha, rank = clara.get("lora_alpha"), clara["lora_rank"]
        if not _is_number(alpha) or not math.isclose(alpha, scale * rank, rel_tol=1e-6):
            clara = clara | {"lora_alpha": scale * rank}
    return Description(
        path=directory,
        source=directory / ABOUT,
        clara=clara,
        base={"name": about["base"]},
        precision=about["precision"],
        quantization=about.get("quantization", NONE),
        history=({"stage": about["stage"]},),
        trained=tuple(about["trained"]),
        overrides=BASE_TABLES,
    )


def load(about: Description, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Load the export's leaves, each onto its devices; see `clara_jax.checkpoints.names.load_adapters`."""
    return load_adapters(leaves, *tensors(about), about.path, about.base["name"])


def tensors(about: Description) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return what `write_peft` wrote: adapters by role, and tables.

    Raises:
      ClaraError: a file that is missing or damaged; an adapter with other tables.
    """
    tables, adapters = map_tensors(about.path / TABLES), {}
    for path in sorted(about.path.glob(f"*/{CONFIG}")):
        weights = path.with_name(WEIGHTS)
        named = {name.removeprefix(_PREFIX): array for name, array in map_tensors(weights).items()}
        adapters[path.parent.name] = _without_tables(weights, named, tables)
    return adapters, tables


# Values that change nothing about what is computed from r, lora_alpha and the tensors; which modules have adapters is
# read off the tensors.
_HARMLESS = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the base as well
}
_IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
}
_IGNORED |= {"task_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
_IGNORED |= {"ensure_weight_tying", "eva_config", "runtime_config"}
_APPLIED = {"r", "lora_alpha", "use_rslora"}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return type(value) in (int, float)  # no bool


def _scale(path: Path, config: Mapping[str, Any], rank: Any) -> float:
    """Return the factor of B A; any unsupported field is an error that names it."""
    for field, value in config.items():
        if field in _IGNORED or field in _APPLIED:
            continue
        absent = value is None or value is False or value in ("", [], {})
        if (field in _HARMLESS and value not in _HARMLESS[field]) or (field not in _HARMLESS and not absent):
            raise ClaraError(
                f'{path}: "{field}" {reprlib.repr(value)} is not supported: the adapter would compute something else; '
                "merge it into the base, or train it without"
            )
    r, alpha, rslora = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if r != rank or type(r) is not int:
        raise ClaraError(f'{path}: "r" {reprlib.repr(r)} is not the rank in {ABOUT}, {reprlib.repr(rank)}')
    if not _is_number(alpha) or not 0 < alpha < 1e6:
        raise ClaraError(f'{path}: "lora_alpha" {reprlib.repr(alpha)} is not a positive number')
    return alpha / math.sqrt(r) if rslora else alpha / r


def _without_tables(
    path: Path, state: Mapping[str, np.ndarray], tables: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the adapter without the embedding tables that PEFT saves with it where they were resized.

    Raises:
      ClaraError: they differ from the export's shared tables.
    """
    for name in state.keys() & {EMBEDDING, HEAD}:
        if name not in tables or not np.array_equal(state[name], tables[name]):
            raise ClaraError(
                f"{path}: tensor {name!r} is not the table in {TABLES}; the three roles share one: write the right "
                "table there, and save the adapter with save_embedding_layers=False"
            )
    return {name: array for name, array in state.items() if name not in (EMBEDDING, HEAD)}
