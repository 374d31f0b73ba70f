"""Checkpoints in the format of the released CLaRa models (``config.json``, two ``.pth`` files); never executes a
pickle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.checkpoints.json_file import read_object
from clara_jax.checkpoints.torch_pickle import read_pth
from clara_jax.errors import ClaraError

ROLES = {"encoder_adapter": "compressor", "query_reasoner_adapter": "query_reasoner", "decoder_adapter": "generator"}
TABLES = ("embed_tokens.weight", "lm_head.weight")
LICENCE_NOTE = "Note: the weights of the released CLaRa checkpoints are for research only (Apple AMLR licence)."


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint: its configuration, adapters by role as PEFT tensors, and whole embedding tables."""

    path: Path
    config: dict[str, Any]
    adapters: dict[str, dict[str, np.ndarray]]
    embedding: np.ndarray  # [V + added, E]
    head: np.ndarray | None  # [V + added, E]; None where tied


def is_released(path: Path) -> bool:
    """Whether a directory looks like one."""
    return (path / "adapters.pth").is_file()


def read_released(path: Path) -> Released:
    """Reads a checkpoint directory.

    Raises:
      ClaraError: missing or malformed files, an adapter that is absent, a pickle with anything but tensors.
    """
    config = read_object(path / "config.json", "give the directory of a released CLaRa checkpoint")
    if config.get("model_type") != "CLaRa":
        raise ClaraError(
            f'{path / "config.json"}: "model_type" {config.get("model_type")!r} is not "CLaRa"; this is no released '
            "CLaRa checkpoint"
        )
    for field in ("doc_max_length", "compr_rate", "lora_r"):
        value = config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ClaraError(f'{path / "config.json"}: "{field}" {value!r} is not a positive whole number')
    if config.get("sep", True) is not True:
        raise ClaraError(
            f'{path / "config.json"}: "sep" {config["sep"]!r} is not supported; prompts have <SEP> between memories'
        )
    raw = read_pth(path / "adapters.pth")
    unknown = sorted(set(raw) - set(ROLES))
    if unknown:
        raise ClaraError(f"{path / 'adapters.pth'}: unknown adapter {unknown[0]!r}; known: {', '.join(ROLES)}")
    # PEFT repeats the resized tables in every adapter.
    adapters = {
        ROLES[role]: {name: array for name, array in state.items() if not name.endswith(TABLES)}
        for role, state in raw.items()
    }
    for name in ("encoder_adapter", "decoder_adapter"):
        if ROLES[name] not in adapters:
            raise ClaraError(f"{path / 'adapters.pth'}: adapter {name!r} is missing; a CLaRa checkpoint needs it")
    tables = read_pth(path / "decoder_first_last_layers.pth")
    embedding = _table(tables, TABLES[0])
    if embedding is None:
        raise ClaraError(f'{path / "decoder_first_last_layers.pth"}: "model.embed_tokens.weight" is missing')
    return Released(path, config, adapters, embedding, _table(tables, TABLES[1]))


def _table(tables: dict[str, Any], ending: str) -> np.ndarray | None:
    return next((np.asarray(array) for name, array in tables.items() if name.endswith(ending)), None)
