"""A reader of ``torch.save`` files without torch, which runs nothing that they contain.

Such a file (PyTorch 1.6 and later) is a zip: ``data.pkl`` describes nested dicts of tensors; ``data/0``, ``data/1``
and so on hold the raw bytes. A pickle is a program for a small stack machine whose instructions may call any Python
function, so a file from the internet must not reach Python's unpickler. The machine here knows only the instructions
that state dicts use, and instead of importing names it compares them with a list. A name or an instruction that is not
listed is an error; there is no path from the file to a call of foreign code.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickletools
import reprlib
import struct
import sys
import zipfile
import zlib
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,  # plain bytes; the tensor brings its own dtype
}
_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_GLOBALS = frozenset(
    [
        "collections.OrderedDict",
        "torch.Size",
        "torch.storage.UntypedStorage",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "builtins.set",
        "builtins.frozenset",
        "__builtin__.set",  # the same names as Python 2 and pickle protocols up to 2 spell them
        "__builtin__.frozenset",
        *(f"torch.{name}" for name in (*_STORAGES, *_DTYPES)),
    ]
)
# Instructions that push their argument.
_PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8".split()
)


def read_pth(path: str | os.PathLike) -> dict:
    """Read a ``torch.save`` file: nested dicts, lists and plain values, with tensors as arrays.

    Tensors keep their dtype (bfloat16 as ``ml_dtypes.bfloat16``); parameters come as their data. Arrays are read-only
    views: tensors that share a storage share memory, strides are kept, and the bytes stay in the file (memory-mapped)
    where the zip stores them uncompressed, as ``torch.save`` does. Attributes of dicts (``_metadata`` of state dicts)
    are dropped.

    Args:
      path: a ``.pth``, ``.pt`` or ``.bin`` file in the zip format, little or big endian.

    Raises:
      ClaraError: not such a file, truncated or damaged, a tensor that reaches outside its storage, or a pickle that
        asks for anything but tensors and plain values. Nothing in the file is executed in any case.

    Source: released checkpoint format (``adapters.pth``, ``decoder_first_last_layers.pth``).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Machine(_Archive(os.fspath(path), archive)).run()
    except FileNotFoundError:
        raise ClaraError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        with open(path, "rb") as file:
            zip_like = file.read(2) == b"PK"
        if zip_like:
            raise ClaraError(f"{path}: the file is truncated or damaged ({error}); download or copy it again") from None
        raise ClaraError(
            f"{path}: not a zip file of torch.save; if it is in the format of PyTorch before 1.6, "
            "load it with torch and save it again"
        ) from None
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not isinstance(content, dict):
        raise ClaraError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; save a state dict")
    return content


# torch.save does not compress. Where another program does, no genuine file of weights shrinks more than this.
_INFLATES = 64
_SMALL = 2**24  # bytes that any file may unpack to
_LARGEST_PICKLE = 2**28  # bytes: it describes tensors, it does not hold them
_WORK = 16  # values that may be visited per byte of the pickle: shared values may be visited repeatedly


class _Archive:
    """The zip around the pickle: its records, each storage mapped once."""

    def __init__(self, path: str, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.storages: dict[str, np.ndarray] = {}
        roots = [name[: -len("data.pkl")] for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        if len(roots) != 1:
            self.fail(f"the zip holds {len(roots)} data.pkl where torch.save writes one; export the model again")
        self.root = roots[0]
        size, unpacked = os.path.getsize(path), sum(info.file_size for info in archive.infolist())
        if unpacked > max(_SMALL, _INFLATES * size):
            self.fail(f"its records unpack to {unpacked:,} bytes from a file of {size:,}; do not trust this file")
        if archive.getinfo(self.root + "data.pkl").file_size > _LARGEST_PICKLE:
            self.fail(f"data.pkl is longer than {_LARGEST_PICKLE:,} bytes; do not trust this file")
        order = self.read("byteorder").decode("ascii", "replace").strip() if self.has("byteorder") else "little"
        if order not in ("little", "big"):
            self.fail(f'record "byteorder" is {order!r}; known: little, big')
        self.swapped = order != sys.byteorder

    def fail(self, why: str) -> NoReturn:
        raise ClaraError(f"{self.path}: {why}")

    def has(self, name: str) -> bool:
        return self.root + name in self.archive.NameToInfo

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(self.root + name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            self.fail(f'record "{name}" is damaged ({error}); download or copy the file again')

    def storage(self, key: str) -> np.ndarray:
        """Return the bytes of one storage, uint8, read-only."""
        if key not in self.storages:
            if not self.has(f"data/{key}"):
                self.fail(f'storage "data/{key}" is missing from the zip; download or copy the file again')
            self.storages[key] = self._map(f"data/{key}")
        return self.storages[key]

    def _map(self, name: str) -> np.ndarray:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size:
            return np.frombuffer(self.read(name), np.uint8)
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            self.fail(f'record "{name}" is damaged; download or copy the file again')
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        try:
            data = np.memmap(self.path, np.uint8, "r", start, (info.file_size,)).view(np.ndarray)
        except ValueError:
            self.fail(f'record "{name}" is truncated; download or copy the file again')
        # Mapped bytes do not pass through zipfile, which would verify their checksum.
        if zlib.crc32(data.data) != info.CRC:
            self.fail(f'record "{name}" is damaged (wrong checksum); download or copy the file again')
        return data


@dataclasses.dataclass(frozen=True)
class _Global:
    """A listed name, which stands for a Python object; it is compared, never imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype | None  # None: bytes without a type
    count: int  # elements, or bytes


class _Machine:
    """The pickle stack machine, reduced to what a file of tensors needs."""

    def __init__(self, archive: _Archive):
        self.archive, self.fail = archive, archive.fail
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            pickled = self.archive.read("data.pkl")
            self.work = _WORK * len(pickled) + 1000
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            self.fail(f"data.pkl is damaged ({type(error).__name__}: {error}); download or copy the file again")
        self.fail("data.pkl is truncated; download or copy the file again")

    def step(self, name: str, argument: Any):
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in _PUSH_ARGUMENT:
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_to_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "LIST":
                items = self.pop_to_mark()
                self.stack.append(items)
            case "DICT":
                items = self.pop_to_mark()
                self.stack.append({})
                self.set_items(items)
            case "APPEND":
                item = stack.pop()
                self.extend([item])
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "ADDITEMS":
                items = self.pop_to_mark()
                if type(self.stack[-1]) is not set:
                    raise TypeError("members are added to something that is not a set")
                self.stack[-1].update(self.scalar(item) for item in items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "POP":
                stack.pop()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.listed(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self.listed(f"{module}.{attribute}"))
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.build(function, arguments))
            case "BUILD":
                stack.pop()  # attributes of a state dict (its _metadata): no tensors, nothing to keep
                if type(stack[-1]) is not dict:
                    self.fail(
                        f'refused: the pickle sets attributes of a "{type(stack[-1]).__name__}"; do not trust this file'
                    )
            case _:
                self.fail(f'refused: the pickle uses the instruction "{name}", which files of tensors do not need')

    def counted(self, items: Any) -> Any:
        """Return the items; fails where visiting them exceeds the work that a pickle of this length may ask for."""
        if not isinstance(items, (list, tuple, set, frozenset)):
            raise TypeError("items of something that has none")
        self.work -= len(items)
        if self.work < 0:
            self.fail("refused: the pickle asks for far more work than its length; do not trust this file")
        return items

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def extend(self, items: list):
        if type(self.stack[-1]) is not list:
            raise TypeError("items are added to something that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list):
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("entries are set in something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.scalar(key)] = value

    def scalar(self, key: Any) -> Any:
        # Hashing a deeply nested tuple would overflow the C stack, and no state dict has such keys.
        if not isinstance(key, (str, int, float, bytes)):
            raise TypeError(f"a key or set member is a {type(key).__name__}")
        return key

    def listed(self, name: str) -> _Global | np.dtype:
        if name not in _GLOBALS:
            self.fail(f'refused: the pickle asks for "{name[:200]}", which no file of tensors needs; do not trust it')
        module, _, attribute = name.rpartition(".")
        return np.dtype(_DTYPES[attribute]) if module == "torch" and attribute in _DTYPES else _Global(name)

    def storage(self, reference: Any) -> _Storage:
        kind, storage_type, key, _location, count = reference
        prefix, _, type_name = storage_type.name.rpartition(".")
        if kind != "storage" or prefix not in ("torch", "torch.storage") or type_name not in _STORAGES:
            raise ValueError("a persistent reference to something that is not a storage")
        dtype = None if type_name == "UntypedStorage" else np.dtype(_STORAGES[type_name])
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage without key or size")
        return _Storage(key, dtype, count)

    def build(self, function: Any, arguments: Any) -> Any:
        """Return what a listed constructor would make of its arguments."""
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise TypeError("a call of something that is not a name")
        match function.name.rpartition(".")[2]:
            case "OrderedDict":
                pairs = self.counted(arguments[0]) if arguments else []
                return {self.scalar(key): value for key, value in pairs}
            case "Size":
                return tuple(self.counted(arguments[0]))
            case "set":
                return {self.scalar(item) for item in self.counted(arguments[0])}
            case "frozenset":
                return frozenset(self.scalar(item) for item in self.counted(arguments[0]))
            case "_rebuild_parameter" | "_rebuild_parameter_with_state":
                if not isinstance(arguments[0], np.ndarray):
                    raise TypeError("a parameter without a tensor")
                return arguments[0]
            case "_rebuild_tensor" | "_rebuild_tensor_v2":
                return self.tensor(*arguments[:4])
            case "_rebuild_tensor_v3":
                return self.tensor(*arguments[:4], dtype=arguments[6])
        self.fail(f'refused: the pickle calls "{function.name}"; do not trust this file')

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> np.ndarray:
        """Return a tensor as a view of its storage; offset and strides count elements."""
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        item = dtype or storage.dtype
        if not isinstance(item, np.dtype):
            raise TypeError("a tensor without a dtype")
        shape, strides = tuple(self.counted(shape)), tuple(self.counted(strides))
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in numbers):
            shown = ", ".join(map(reprlib.repr, (offset, shape, strides)))
            self.fail(f"a tensor has offset, shape and strides {shown}; do not trust this file")

        raw = self.archive.storage(storage.key)
        declared = storage.count * (storage.dtype or np.dtype(np.uint8)).itemsize
        if raw.size < declared:
            self.fail(
                f'storage "data/{storage.key}" has {raw.size} bytes where {declared} are announced; copy the file again'
            )
        size = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # The bounds are checked before the view is made: as_strided would read any address.
        if size and (last + 1) * item.itemsize > raw.size:
            self.fail(
                f'a tensor of shape {reprlib.repr(shape)} reaches outside its storage "data/{storage.key}"; '
                "do not trust this file"
            )
        if size * item.itemsize > max(_SMALL, raw.size):  # strides of 0 repeat elements without limit
            self.fail(f"a tensor of shape {reprlib.repr(shape)} is larger than its storage; do not trust this file")
        if not size:
            return np.zeros(shape, item)
        raw = raw[: raw.size // item.itemsize * item.itemsize]
        if self.archive.swapped and item.itemsize > 1:
            raw = raw.view(f"u{item.itemsize}").byteswap()  # ml_dtypes know no byte order, so swap as integers
        elements = raw.view(item)[offset:]
        return np.lib.stride_tricks.as_strided(elements, shape, [s * item.itemsize for s in strides], writeable=False)
