"""JSON files that are one value: a large array is read record by record, with the line of each."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import open_binary, zstd
from clara_jax.strict_json import parse

BLOCK = 1 << 20  # characters read at a time


def read_array(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ("path:line: record i", value) for every record of a file that is one JSON array; i counts from 0.

    The line is the one on which the record begins. Memory holds a block of the file and one record.

    Raises:
      ClaraError: a file that cannot be read, is not JSON, or is not an array.
    """
    with _opened(path) as file:
        scanner = _Scanner(path, file)
        if scanner.next_character() != "[":
            raise ClaraError(f'{path}:{scanner.line}: the file does not begin with "["; it must be one JSON array')
        scanner.skip_character()
        number = 0
        while scanner.next_character() != "]":
            where = f"{path}:{scanner.line}: record {number}"
            yield where, scanner.value(where)
            number += 1
            separator = scanner.next_character()
            if separator not in ("]", ","):
                scanner.refuse(where, "Expecting ',' or ']' after it")
            if separator == ",":
                scanner.skip_character()
                if scanner.next_character() == "]":
                    scanner.refuse(where, "',' before ']'")
        scanner.skip_character()
        if scanner.next_character():
            raise ClaraError(f"{path}:{scanner.line}: not JSON (text after the array's end)")


def read_whole(path: str) -> Any:
    """Return the value of a file that is one JSON value.

    Raises:
      ClaraError: a file that cannot be read or is not JSON.
    """
    with _opened(path) as file:
        text = file.read()
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        raise ClaraError(f"{path}:{error.lineno}: column {error.colno}: not JSON ({error.msg})") from None


class _Scanner:
    """A place in the text of a file, of which a part is in memory."""

    def __init__(self, path: str, file: TextIO):
        self.line = 1
        self._path, self._file = path, file
        self._text, self._at, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """Return the next character that is no white space, or "" at the end of the file; it is not consumed."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in " \t\r\n":
                    return character
                self.skip_character()
            if not self._read_more():
                return ""

    def skip_character(self) -> None:
        """Consume a character."""
        self._move(self._at + 1)

    def value(self, where: str) -> Any:
        """Read the JSON value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Is it broken, or only cut off by the end of the block? A value that is cut off fails near that end, or
                # in a string that never ends. A file that ends here is broken in either case.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if self._ended or not cut:
                    self._move(error.pos)
                    self.refuse(where, error.msg)
            except RecursionError:
                raise ClaraError(f"{where}: nested too deeply to be a record") from None
            except ValueError:
                raise ClaraError(f"{where}: not JSON (it has a number of thousands of digits)") from None
            else:
                if end + 2 < len(self._text) or self._ended:  # a number may go on in the next block: 1 | e+5
                    self._move(end)
                    return value
            self._read_more()

    def refuse(self, where: str, problem: str) -> NoReturn:
        """Raise the error that a record is not JSON."""
        record = where.removeprefix(f"{self._path}:").partition(": ")[2]
        raise ClaraError(f"{self._path}:{self.line}: {record}: not JSON ({problem}); download the file again")

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _read_more(self) -> bool:
        # As much again as is there, so that a record of many blocks is not decoded once for each of them.
        block = "" if self._ended else self._file.read(max(BLOCK, len(self._text) - self._at))
        self._ended = not block
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    """Open a file as text, decompressed by its name; an error while it is read becomes a `ClaraError` of one line."""
    try:
        with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ClaraError(f"{path}: not UTF-8 ({error.reason}); download the file again") from None
    except FileNotFoundError:
        raise ClaraError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ClaraError(f"{path}: is a directory; name a JSON file") from None
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise ClaraError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
