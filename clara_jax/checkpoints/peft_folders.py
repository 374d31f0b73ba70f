"""Adapters as PEFT has them, a folder for each role, and what they share beside them.

DIR/export.json                 the method's numbers
DIR/compressor/                 adapter_config.json, adapter_model.safetensors
DIR/query_reasoner/, DIR/generator/
DIR/embeddings.safetensors      whole tables, the added tokens at their end; and the memory map of a model that has one
DIR/tokenizer/                  with the added tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from clara_jax.checkpoints.hugging_face import write_json
from clara_jax.checkpoints.json_file import read_object
from clara_jax.checkpoints.safetensors_files import open_tensors
from clara_jax.errors import ClaraError

KIND = "clara_jax PEFT export"
ABOUT, TABLES = "export.json", "embeddings.safetensors"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MEMORY_MAP = "memory_map."  # what the names of its vectors begin with
_PREFIX = "base_model.model."


def is_peft(path: Path) -> bool:
    """Whether a directory looks like what `write_peft` makes."""
    return (path / ABOUT).is_file() and (path / TABLES).is_file()


def write_peft(
    directory: Path,
    about: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, np.ndarray]],
    tables: Mapping[str, np.ndarray],
    base: str,
    lora: Mapping[str, Any],
) -> None:
    """Writes all but the tokenizer.

    Args:
      about: content of ``export.json``.
      adapters: PEFT tensors by plain name (`clara_jax.checkpoints.names.export_lora`), by role.
      tables: "model.embed_tokens.weight" and, where untied, "lm_head.weight"; of a memory map "memory_map.scale",
        "memory_map.center" and "memory_map.shift".
      base: what ``base_model_name_or_path`` says.
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


def read_peft(
    directory: Path,
) -> tuple[dict[str, Any], dict[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """What `write_peft` wrote: about, adapters and tables.

    Raises:
      ClaraError: a file that is missing, damaged or of another kind.
    """
    remedy = "give the folder that python -m clara_jax.convert export --format peft made"
    about = read_object(directory / ABOUT, remedy)
    if about.get("kind") != KIND:
        raise ClaraError(f'{directory / ABOUT}: "kind" {about.get("kind")!r} is not {KIND!r}; {remedy}')
    for name in ("base", "clara", "precision", "stage", "trained"):
        if name not in about:
            raise ClaraError(f'{directory / ABOUT}: "{name}" is missing; {remedy}')
    roles = [path.parent.name for path in sorted(directory.glob(f"*/{CONFIG}"))]
    adapters = {}
    for role in roles:
        tensors = open_tensors(directory / role / WEIGHTS)
        adapters[role] = {name.removeprefix(_PREFIX): tensors[name] for name in tensors}
    return about, adapters, open_tensors(directory / TABLES)
