"""Language models as transformers, vLLM and others read them: ``config.json``, safetensors, generation config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHARD_BYTES = 4 << 30
_CLASSES = {
    "mistral": "MistralForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def write_config(directory: Path, config: Mapping[str, Any], dtype: str, vocab_size: int, ids: Mapping[str, Any]):
    """Write ``config.json`` and ``generation_config.json``.

    Args:
      directory: of the model.
      config: the base's.
      dtype: of the weights beside it.
      vocab_size: rows of the embedding table.
      ids: "bos_token_id", "eos_token_id" (one or a list) and "pad_token_id".
    """
    named = {"architectures": [_CLASSES[config["model_type"]]], "torch_dtype": dtype, "vocab_size": vocab_size}
    outdated = ("dtype", "auto_map", "quantization_config")  # of the files that the base was read from
    whole = {name: value for name, value in config.items() if name not in outdated} | named | dict(ids)
    write_json(directory / "config.json", whole)
    write_json(directory / "generation_config.json", dict(ids))


def write_tensors(directory: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards of it and their index; holds one shard at a time."""
    shards: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}
    total = held = 0

    def flush() -> None:
        nonlocal waiting, held
        shards.append(list(waiting))
        save_file(waiting, directory / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        waiting, held = {}, 0

    for name, array in tensors:
        if waiting and held + array.nbytes > shard_bytes:
            flush()
        waiting[name] = np.ascontiguousarray(array)
        held, total = held + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        (directory / "1.safetensors").rename(directory / "model.safetensors")
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names, 1):
        (directory / f"{number}.safetensors").rename(directory / name)
    placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
