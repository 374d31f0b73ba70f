"""Validation of a GGUF file's header against the file's size, before anything is built from it.

The gguf package trusts every count: an array of 2^60 strings would keep it busy for years. Here the header is walked
once, in time linear in its bytes, up to the first inconsistency.
"""

from __future__ import annotations

import mmap
import struct
from typing import NoReturn

from clara_jax.errors import ClaraError

STRING, ARRAY = 8, 9
# Bytes of a value by type; GGUF specification, "File Structure".
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# More than any tokenizer has; the package keeps about a hundred bytes for each, less than a gigabyte in all.
MOST_VALUES = 8_000_000
MOST_DIMENSIONS = 4
LONGEST_NAME = 65535  # bytes


def check_header(path: str) -> None:
    """Refuse a file whose header announces more than the file holds, or more than any model's header needs.

    A file of the other byte order, or of an unknown version, is left to the reader.

    Raises:
      ClaraError: the header is refused; the message names the file and the problem.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if len(file.read(24)) < 24:
            raise ClaraError(f"{path}: truncated: a GGUF file has at least 24 bytes; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(path, data).run()


class _Walk:
    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.data, self.end = path, data, len(data)
        self.at, self.values = 4, 0

    def fail(self, why: str) -> NoReturn:
        raise ClaraError(f"{self.path}: truncated or damaged ({why}); download it again")

    def run(self) -> None:
        if not 1 < self.number("<I", "version") < 2**16:
            return
        tensors, fields = self.number("<Q", "count of tensors"), self.number("<Q", "count of fields")
        # Least bytes of each: a name's length, a type and a value; a name's length, dimensions, type and offset.
        if fields > (self.end - self.at) // 13 or tensors > (self.end - self.at) // 24:
            self.fail(f"it announces {fields:,} fields and {tensors:,} tensors")
        for _ in range(fields):
            self.value(self.name(), self.number("<I", "type of a field"))
        for _ in range(tensors):
            name = self.name()
            dimensions = self.number("<I", f"dimensions of the tensor {name!r}")
            if dimensions > MOST_DIMENSIONS:
                self.fail(f"the tensor {name!r} has {dimensions:,} dimensions")
            elements = 1
            for _ in range(dimensions):
                elements *= self.number("<Q", f"size of the tensor {name!r}")
            self.number("<I", f"type of the tensor {name!r}")
            place = self.number("<Q", f"place of the tensor {name!r}")
            # Every type has at least one bit per element.
            if elements > 8 * self.end or place > self.end:
                self.fail(f"the tensor {name!r} has {elements:,} elements and lies at {place:,} of {self.end:,} bytes")

    def number(self, form: str, what: str) -> int:
        size = struct.calcsize(form)
        if self.at + size > self.end:
            self.fail(f"it ends within the {what}")
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value

    def skip(self, size: int, what: str) -> None:
        if size > self.end - self.at:
            self.fail(f"{what} announces {size:,} bytes, {self.end - self.at:,} are left")
        self.at += size

    def name(self) -> str:
        length = self.number("<Q", "length of a name")
        if length > LONGEST_NAME:
            self.fail(f"a name announces {length:,} bytes")
        start = self.at
        self.skip(length, "a name")
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            self.fail("a name is not UTF-8")

    def value(self, name: str, kind: int) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind], f'"{name}"')
        elif kind == STRING:
            self.skip(self.number("<Q", f'length of "{name}"'), f'"{name}"')
        elif kind == ARRAY:
            self.array(name, self.number("<I", f'type of "{name}"'), self.number("<Q", f'length of "{name}"'))
        else:
            self.fail(f'"{name}" is of the unknown type {kind}')

    def array(self, name: str, kind: int, length: int) -> None:
        self.values += length
        if kind == ARRAY:
            self.fail(f'"{name}" is an array of arrays, which no model needs')
        if kind != STRING and kind not in SIZES:
            self.fail(f'"{name}" is an array of the unknown type {kind}')
        if length * SIZES.get(kind, 8) > self.end - self.at:
            self.fail(f'"{name}" announces {length:,} values, {self.end - self.at:,} bytes are left')
        if self.values > MOST_VALUES:
            self.fail(f'"{name}" brings the lists to {self.values:,} values, more than {MOST_VALUES:,}')
        if kind in SIZES:
            self.skip(length * SIZES[kind], f'"{name}"')
            return
        for _ in range(length):
            self.skip(self.number("<Q", f'length of a string of "{name}"'), f'a string of "{name}"')
