"""Compact checkpoints: adapters, added rows and memory map; no base, tokenizer or optimizer state.

DIR/model.json            the method's numbers, the base's name and hash, what the tensors are; checksums of both files
DIR/model.safetensors     trained leaves by path ("lora/generator/layers/mlp/up/a"), bfloat16 or int8 with scales

Base and tokenizer are referenced by the base's hash. This is the form of the models inside the package, and of
snapshots of a run that are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from clara_jax.checkpoints.description import Description
from clara_jax.errors import ClaraError
from clara_jax.formats.hugging_face import write_json
from clara_jax.formats.json_file import read_object
from clara_jax.formats.safetensors_files import map_tensors
from clara_jax.model.quantization import NONE, dequantize, quantize
from clara_jax.model.sharding import place
from clara_jax.strict_json import sealed, unsealed

KIND = "clara_jax compact model"
FILES = (ABOUT, WEIGHTS) = ("model.json", "model.safetensors")  # a directory that holds them is such a checkpoint
DTYPES = ("float32", "bfloat16", "int8")
SCALE = ".scale"  # suffix of the name of an int8 tensor's scales
_FIELDS = {
    "base": dict,
    "clara": dict,
    "history": list,
    "precision": str,
    "prompt_version": str,
    "sha256": str,
    "tokenizer": str,
    "trained": list,
}
_REMEDY = "give the folder that python -m clara_jax.convert export --format compact made"


def write_compact(directory: Path, about: Mapping[str, Any], leaves: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write leaves and their description into an existing, empty directory.

    Args:
      directory: where ``model.json`` and ``model.safetensors`` are written.
      about: content of ``model.json``; kind, dtype and the checksum are added.
      leaves: float32 arrays by path. Matrices are stored in ``dtype``; vectors, such as a memory map, stay float32.
      dtype: one of `DTYPES`. int8 has one float32 scale for each rank component of each layer (`rank_axis`).
    """
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        leaf = np.asarray(leaf, np.float32)
        if leaf.ndim < 2 or dtype == "float32":
            tensors[name] = np.ascontiguousarray(leaf)
        elif dtype == "bfloat16":
            tensors[name] = np.ascontiguousarray(leaf.astype(ml_dtypes.bfloat16))
        else:
            tensors[name], tensors[name + SCALE] = quantize(leaf, rank_axis(leaf))
    save_file(tensors, directory / WEIGHTS)
    description = {"kind": KIND, "dtype": dtype, "sha256": _sha256(directory / WEIGHTS), **about}
    write_json(directory / ABOUT, sealed(description))


def describe(directory: Path) -> Description:
    """Return the description that `write_compact` wrote.

    Raises:
      ClaraError: a file that is missing, damaged or of another kind.
    """
    about = unsealed(read_object(directory / ABOUT, _REMEDY))
    if about is None:
        raise ClaraError(f"{directory / ABOUT}: was changed since it was written; fetch the folder again")
    if about.get("kind") != KIND:
        raise ClaraError(f'{directory / ABOUT}: "kind" {about.get("kind")!r} is not {KIND!r}; {_REMEDY}')
    for name, kind in _FIELDS.items():
        if not isinstance(about.get(name), kind):
            raise ClaraError(f'{directory / ABOUT}: "{name}" is missing or not of type {kind.__name__}; {_REMEDY}')
    for name in ("name", "hash"):
        if not isinstance(about["base"].get(name), str):
            raise ClaraError(f'{directory / ABOUT}: "base" has no "{name}"; {_REMEDY}')
    if _sha256(directory / WEIGHTS) != about["sha256"]:
        raise ClaraError(f"{directory / WEIGHTS}: does not match its checksum in {ABOUT}; fetch the folder again")
    return Description(
        path=directory,
        source=directory / ABOUT,
        clara=about["clara"],
        base=about["base"],
        precision=about["precision"],
        quantization=about.get("quantization", NONE),
        history=tuple(about["history"]),
        trained=tuple(about["trained"]),
        prompt_version=about["prompt_version"],
        tokenizer_hash=about["tokenizer"],
    )


def load(about: Description, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Load the stored leaves, each onto its devices.

    Args:
      about: see `describe`.
      leaves: all that such a checkpoint may hold, by path, each with its sharding.

    Raises:
      ClaraError: a damaged file; a leaf of another shape, or one that the model does not have.
    """
    arrays = {}
    for name, leaf in tensors(about):
        if name not in leaves:
            raise ClaraError(f"{about.path}: holds {name!r}, which this model does not have")
        if leaf.shape != leaves[name].shape:
            raise ClaraError(
                f"{about.path}: {name} is of the shape {list(leaf.shape)}, and must be {list(leaves[name].shape)}"
            )
        arrays[name] = place(leaf, leaves[name].sharding)
    for name, wanted in leaves.items():
        if name not in arrays and not name.startswith("lora/query_reasoner/"):
            raise ClaraError(f"{about.path}: {name} is missing, and must be {list(wanted.shape)}")
    return arrays


def tensors(about: Description) -> Iterator[tuple[str, np.ndarray]]:
    """Yield float32 leaves with their paths, as `write_compact` was given them, up to rounding.

    Raises:
      ClaraError: a file that is missing or damaged.
    """
    stored = map_tensors(about.path / WEIGHTS)
    for name, leaf in stored.items():
        if not name.endswith(SCALE):
            scales = stored.get(name + SCALE)
            yield name, np.asarray(leaf, np.float32) if scales is None else dequantize(leaf, scales)


def rank_axis(leaf: np.ndarray) -> int:
    """Return the longest axis after the first, that of the stacked layers.

    For a LoRA matrix it is the embedding or MLP axis: shared along it, each rank component of each layer has a scale.
    """
    return 1 + int(np.argmax(leaf.shape[1:]))


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read: {error.strerror or error}; {_REMEDY}") from error
