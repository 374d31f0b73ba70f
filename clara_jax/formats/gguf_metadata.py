"""Metadata of a GGUF file: the file is opened here, and its fields are read by name and checked by type.

What is wrong with a field is an error that names file and field.
"""

from __future__ import annotations

import math
import os
import reprlib
import warnings
from typing import Any, NoReturn

import gguf
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.formats.gguf_header import check_header

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3")

_KINDS = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false"}


class GGUFMetadata:
    """The fields of one GGUF file, which is memory-mapped.

    Args:
      path: the file. Split files (``...-00001-of-00003.gguf``) must be merged first.

    Attributes:
      path: the file.
      architecture: one of `ARCHITECTURES`; `field` and those after it put its name before a key.
      stored: the tensors as they are stored, by their names in the file.

    Raises:
      ClaraError: unreadable, truncated or split file, or an architecture that is not supported, by name.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                if file.read(4) != b"GGUF":
                    self.fail("not a GGUF file")
            check_header(self.path)
            # Absurd sizes overflow in the package's arithmetic, with a warning.
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                self._reader = gguf.GGUFReader(self.path)
        except OSError as error:
            self.fail(f"cannot be read ({error.strerror or error})")
        except ClaraError:
            raise
        except Exception as error:  # the package raises many types
            self.fail(f"truncated or damaged ({type(error).__name__}: {str(error)[:200]}); download it again")
        self.stored = {tensor.name: tensor for tensor in self._reader.tensors}
        if self._reader.byte_order == "S":
            self.fail("has the other byte order than this machine; convert it with gguf_convert_endian.py")
        if self.get("split.count", 1, int) > 1:
            self.fail("is one part of several; join them with llama-gguf-split --merge")
        self.architecture = self.get("general.architecture", kind=str)
        if self.architecture not in ARCHITECTURES:
            self.fail(f'architecture "{self.architecture}" is not supported; known: {", ".join(ARCHITECTURES)}')

    def fail(self, why: str) -> NoReturn:
        """Raise ClaraError with the file's path before the reason."""
        raise ClaraError(f"{self.path}: {why}")

    def get(self, key: str, default: Any = None, kind: type | None = None) -> Any:
        """Return the value of a field.

        Args:
          key: its name.
          default: the value where it is missing.
          kind: type that it must have: str, int, bool, or float, which includes whole numbers; None for any.
        """
        field = self._reader.get_field(key)
        if field is None:
            return default
        try:
            value = field.contents()
        except UnicodeDecodeError:
            self.fail(f'"{key}" is not UTF-8')
        except Exception as error:  # of a damaged field
            self.fail(f'"{key}" cannot be read ({type(error).__name__})')
        if kind is not None:
            self._check(key, [value], kind)
        return value

    def values(self, key: str, kind: type) -> list | None:
        """Return the values of a field that is a list of one type; None where it is missing."""
        values = self.get(key)
        if values is not None and not isinstance(values, list):
            self.fail(f'"{key}" is {_shown(values)}, not a list')
        self._check(key, values or [], kind)
        return values

    def _check(self, key: str, values: list, kind: type) -> None:
        kinds = (float, int) if kind is float else (kind,)
        for value in values:
            # True is a number to Python alone.
            if type(value) not in kinds or (kind is float and not math.isfinite(value)):
                self.fail(f'"{key}" is {_shown(value)}, not {_KINDS[kind]}')

    def field(self, key: str, default: Any = None, kind: type | None = None) -> Any:
        """Return the value of a field of the architecture; see `get`."""
        return self.get(f"{self.architecture}.{key}", default, kind)

    def required(self, key: str, kind: type | None = None) -> Any:
        """Return the value of a field of the architecture that must be there."""
        value = self.field(key, kind=kind)
        if value is None:
            self.fail(f'"{self.architecture}.{key}" is missing; the file does not describe its model')
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive number of the architecture; a list of one number per layer counts if all are the same."""
        value = self.required(key) if default is None else self.field(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # one number per layer, all the same
        if type(value) is not int or value < 1:
            self.fail(f'"{self.architecture}.{key}" is {_shown(value)}, not one positive number for all layers')
        return value


def _shown(value: Any) -> str:
    return reprlib.repr(value)
