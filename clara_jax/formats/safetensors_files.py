"""Safetensors, memory-mapped: one file, or a model directory with one file or with an index and its shards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def weight_files(path: str | os.PathLike) -> list[Path]:
    """Return the safetensors files of ``path`` (a file, or a directory in Hugging Face's layout), sorted by name.

    Raises:
      ClaraError: nothing there, weights in another format only, a damaged index, or a missing shard.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ClaraError(f"{path}: no such file or directory")
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return sorted({path / shard for shard in _weight_map(index).values()})
    found = sorted(child.name for child in path.glob("*.bin")) + sorted(child.name for child in path.glob("*.pth"))
    if found:
        raise ClaraError(f"{path}: holds {found[0]} but no model.safetensors; convert the model to safetensors")
    raise ClaraError(
        f"{path}: holds no weights; expected model.safetensors, or model.safetensors.index.json and its shards"
    )


def open_tensors(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Open tensors by name; each is mapped from its file on access (read-only, bfloat16 as ``ml_dtypes``).

    Args:
      path: a directory with ``model.safetensors``, or with ``model.safetensors.index.json`` and the shards that it
        names, or a single file.

    Raises:
      ClaraError: as ``weight_files``; a truncated file; a tensor that the index names and its shard does not
        hold, or that it does not name. Of a tensor in several shards, the one is read that the index names.
    """
    path = Path(path)
    shards = {file.name: _header(file) for file in weight_files(path)}
    index = path / "model.safetensors.index.json"
    if not (path.is_dir() and index.is_file() and not (path / "model.safetensors").is_file()):
        return _Tensors(next(iter(shards.values())))
    names = _weight_map(index)
    for name, shard in names.items():
        if name not in shards[shard]:
            raise ClaraError(
                f'{index}: names the tensor "{name}" in {shard}, which does not hold it; download both again'
            )
    # A stale copy in another shard is ignored, for the index decides; a tensor that it does not name is an error.
    for shard, held in shards.items():
        if unnamed := sorted(held.keys() - names.keys()):
            raise ClaraError(
                f'{index}: does not name the tensor "{unnamed[0]}" of {shard} ({len(unnamed)} such tensors); '
                "download both again"
            )
    return _Tensors({name: shards[shard][name] for name, shard in names.items()})


def map_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Map all tensors at once, as `open_tensors` does one by one: for adapters, which are small beside a base.

    Raises:
      ClaraError: as ``open_tensors``; a tensor of a dtype that is not supported.
    """
    tensors = open_tensors(path)
    return {name: tensors[name] for name in tensors}


def open_metadata(file: Path, remedy: str = "download it again") -> dict[str, str]:
    """Return the metadata of one safetensors file; {} where it has none.

    Args:
      file: its path.
      remedy: the end of the message about a damaged one.

    Raises:
      ClaraError: no such file; a truncated or damaged one.
    """
    with _file_errors(file, remedy), safe_open(file, framework="numpy") as opened:
        return opened.metadata() or {}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = parse(index.read_text(encoding="utf-8"))["weight_map"]
        plain = all(isinstance(shard, str) and shard and Path(shard).name == shard for shard in weight_map.values())
    except json.JSONDecodeError as error:
        raise ClaraError(f"{index}:{error.lineno}: not valid JSON ({error.msg}); download the file again") from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        weight_map, plain = {}, False
    if not plain:
        raise ClaraError(f'{index}: "weight_map" must give a file of the same directory for each tensor name')
    # os.path returns False for an invalid name; Path raises.
    missing = sorted(shard for shard in set(weight_map.values()) if not os.path.isfile(index.parent / shard))
    if missing:
        raise ClaraError(
            f"{index}: names {missing[0][:200]!r}, which is missing ({len(missing)} such files); "
            "download the model again"
        )
    return weight_map


@contextlib.contextmanager
def _file_errors(file: Path, remedy: str = "download it again") -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ClaraError(f"{file}: truncated, damaged, or not a safetensors file ({error}); {remedy}") from None
    except OSError as error:
        raise ClaraError(f"{file}: cannot be read ({error.strerror or error})") from None


class _Place:
    """The place of one tensor: file, first byte, dtype and shape."""

    def __init__(self, file: Path, start: int, dtype: str, shape: tuple[int, ...]):
        self.file, self.start, self.dtype, self.shape = file, start, dtype, shape


def _header(file: Path) -> dict[str, _Place]:
    with _file_errors(file):
        # Checks the header: offsets in order, sizes that fit dtype and shape, nothing beyond the file. The bytes are
        # read here: the package's numpy interface does not know all dtypes in all its versions.
        with safe_open(file, framework="numpy"):
            pass
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = parse(stream.read(length))
    return {
        name: _Place(file, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }


class _Tensors(Mapping[str, np.ndarray]):
    def __init__(self, places: dict[str, _Place]):
        self._places = places

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise ClaraError(f'{place.file}: tensor "{name}" has the dtype {place.dtype}, which is not supported')
        dtype = np.dtype(_DTYPES[place.dtype])
        size = int(np.prod(place.shape, dtype=np.int64)) * dtype.itemsize
        if not size:
            return np.zeros(place.shape, dtype)
        data = np.memmap(place.file, np.uint8, "r", place.start, (size,)).view(np.ndarray)
        return data.view(dtype).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
