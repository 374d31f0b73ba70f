"""Files for ``torch.load`` (``weights_only=True``, too), written without torch.

`clara_jax.formats.torch_pickle` reads them.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
}
_ROOT = "archive/"


def write_pth(path: str | os.PathLike | BinaryIO, content: Mapping[str, Any] | np.ndarray) -> None:
    """Write nested dicts of arrays, or one array, in the layout of ``torch.save``: a zip of raw storages and a pickle.

    An array that occurs several times (the same object) is stored once, like tensors that share a storage.

    Args:
      path: the file, or a file object.
      content: an array (float32, float16 or bfloat16), or str -> dict or array.

    Raises:
      OSError: the file system refuses.
    """
    arrays: dict[int, tuple[int, np.ndarray]] = {}
    pickled = b"\x80\x02" + _node(content, arrays) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_undated("data.pkl"), pickled)
        archive.writestr(_undated("byteorder"), "little")
        for key, array in arrays.values():
            little = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(f"<u{array.dtype.itemsize}")
            with archive.open(_undated(f"data/{key}"), "w", force_zip64=True) as file:
                file.write(little.reshape(-1).view(np.uint8).data)
        archive.writestr(_undated("version"), "3\n")


def _undated(name: str) -> zipfile.ZipInfo:
    """Return a zip member without a timestamp, so that the same content gives the same bytes."""
    return zipfile.ZipInfo(_ROOT + name)


def _node(node: Mapping[str, Any] | np.ndarray, arrays: dict[int, tuple[int, np.ndarray]]) -> bytes:
    return _dict(node, arrays) if isinstance(node, Mapping) else _tensor(node, arrays)


def _dict(content: Mapping[str, Any], arrays: dict[int, tuple[int, np.ndarray]]) -> bytes:
    items = [_text(name) + _node(node, arrays) for name, node in content.items()]
    return b"}(" + b"".join(items) + b"u"  # EMPTY_DICT, MARK, the items, SETITEMS


def _tensor(array: np.ndarray, arrays: dict[int, tuple[int, np.ndarray]]) -> bytes:
    """Pickle a call of torch._utils._rebuild_tensor_v2(storage, offset, size, strides, requires_grad, hooks)."""
    key, _ = arrays.setdefault(id(array), (len(arrays), array))
    kind = f"ctorch\n{_STORAGES[array.dtype]}\n".encode()
    storage = b"(" + _text("storage") + kind + _text(str(key)) + _text("cpu") + _int(array.size) + b"tQ"
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    shape = b"".join((b"(", *map(_int, array.shape), b"t(", *map(_int, strides), b"t"))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _int(0) + shape + b"\x89" + hooks + b"tR"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)
