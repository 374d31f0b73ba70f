"""Lines of JSONL files: plain or compressed, local or remote, each decoded or refused by file and line; and written.

``.gz`` is gzip and ``.zst`` Zstandard. A path with a scheme, as ``gs://bucket/train/*.jsonl.zst``, is opened by fsspec;
files are written locally, whole or not at all.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from clara_jax.errors import ClaraError, nearest_name
from clara_jax.files import replaced_when_whole
from clara_jax.strict_json import parse

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = TypeVar("T")
GZIP, ZSTANDARD = ".gz", ".zst"
REMOTE_BLOCK = 2**20  # bytes of a remote file that are read at a time
LONGEST_LINE = 2**28  # bytes, unpacked: a small compressed file may hold a line that no memory does
ON_ERROR = ("stop", "skip")  # what happens at a line that is no item: an error, or it is rejected


def data_files(patterns: Iterable[str], field: str) -> tuple[str, ...]:
    """Return the files that the patterns of a data field name: ``${VARIABLE}`` and ``~`` expanded, globs sorted.

    Args:
      patterns: e.g. ``("${CLARA_SHARED_DATA}/squad/*.train.jsonl", "gs://bucket/more.jsonl.gz")``.
      field: its name for messages, e.g. "config.scp.data.train".

    Raises:
      ClaraError: a variable that is not set, a file that does not exist, a pattern that matches none.
    """
    files: list[str] = []
    for pattern in patterns:
        for variable in re.findall(r"\$\{(\w+)\}", pattern):
            if variable not in os.environ:
                raise ClaraError(f"{field}: {pattern} needs the environment variable {variable}, which is not set")
        path = os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], pattern))
        found = _remote_files(path, field) if is_remote(path) else _local_files(path)
        if not found:
            what = "matches no file" if glob.has_magic(path) else "does not exist"
            raise ClaraError(f"{field}: {path} {what}{'' if is_remote(path) else _nearest(path)}")
        files += [name for name in found if name not in files]
    return tuple(files)


def _nearest(path: str) -> str:
    """Return the end of a message about a missing path: the nearest name in its folder, if one is near."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        near = nearest_name(name, os.listdir(folder or "."))
    except OSError:  # of the folder, which is missing as well
        return ""
    return f"; did you mean {os.path.join(folder, near)}?" if near else ""


def is_remote(path: str) -> bool:
    """Return whether a path names a file system, as ``gs://`` does."""
    return "://" in path


def raw_lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield ("path:line", the line's bytes) for every line that is not blank, a byte order mark removed.

    Raises:
      ClaraError: a file that cannot be read.
    """
    try:
        with open_binary(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(line) > LONGEST_LINE:
                    raise ClaraError(f"{path}:{number}: is longer than {LONGEST_LINE // 2**20:,} MiB; divide the line")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield f"{path}:{number}", line
    except FileNotFoundError:
        raise ClaraError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ClaraError(f"{path}: is a directory; name a JSONL file") from None
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:  # damaged compressed files are among them
        raise ClaraError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:
        if isinstance(error, ClaraError) or not is_remote(path):
            raise
        raise ClaraError(f"{path}: cannot be read: {error}") from error  # each driver raises other errors


def decode(line: bytes, where: str) -> Any:
    """Return the JSON value of a line.

    Args:
      line: its bytes, UTF-8.
      where: what messages begin with, e.g. "file.jsonl:17".

    Raises:
      ClaraError: not UTF-8, not JSON.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ClaraError(f"{where}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8") from None
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        raise ClaraError(
            f"{where}: column {error.colno}: not JSON ({error.msg}); each line must be one JSON object"
        ) from None


class Rejects:
    """A JSONL file of rejected lines, each with its reason.

    Attributes:
      count: of rejected lines.
      first: the first reason of each file.
    """

    def __init__(self, path: str | os.PathLike):
        self.count = 0
        self.first: dict[str, str] = {}
        self._file = open(path, "w", encoding="utf-8")

    def add(self, error: ClaraError, where: str, line: bytes) -> None:
        """Write a rejected line with the reason, the message of ``error``."""
        self.count += 1
        self.first.setdefault(where.rpartition(":")[0], str(error))
        # What is no UTF-8 is spelled out: the file itself must be readable.
        text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        row = {"where": where, "reason": str(error).removeprefix(f"{where}: "), "line": text}
        self._file.write(json.dumps(row) + "\n")

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def parse_lines(path: str, parse: Callable[[Any, str], T], rejects: Rejects | None = None) -> Iterator[T]:
    """Yield the items that the lines of a file hold, one at a time.

    Args:
      path: a JSONL file.
      parse: (decoded JSON, "path:line") -> an item; raises `ClaraError` for a value that is none.
      rejects: takes the lines that are no items; None: the first one is an error.

    Raises:
      ClaraError: a file that cannot be read; without ``rejects``, a line that is no item.
    """
    for where, line in raw_lines(path):
        try:
            item = parse(decode(line, where), where)
        except ClaraError as error:
            if rejects is None:
                raise
            rejects.add(error, where, line)
            continue
        yield item


def read_json_lines(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ("path:line", decoded JSON) for every line that is not blank; the first mistake is an error."""
    return parse_lines(path, lambda value, where: (where, value))


@contextlib.contextmanager
def write_json_lines(path: str | os.PathLike) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes one object; the file is replaced only when the block ends without an error.

    Args:
      path: compressed by its name, ``.gz`` or ``.zst``; the same lines give the same bytes. Folders are made.

    Raises:
      ClaraError: the file system refuses.
    """
    path = Path(path)
    with replaced_when_whole(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as raw, _compressed(raw, path.name) as file:
            yield lambda value: _write(file, value)


def check_output(path: str, files: Iterable[str]) -> None:
    """Check that a file that is to be written is none of those that are read.

    Raises:
      ClaraError: it is one, by whatever name.
    """
    there = os.path.exists(path)
    if any(name == path or (there and os.path.exists(name) and os.path.samefile(name, path)) for name in files):
        raise ClaraError(f"--output: {path} is one of the files that are read; name another")


def open_binary(path: str) -> io.BufferedReader | gzip.GzipFile | zstd.ZstdFile:
    """Open a file for reading, local or remote, decompressed by its name.

    Raises:
      OSError: as `open`; reading a compressed file may raise the errors of gzip and Zstandard, too.
      ClaraError: no driver for the path's scheme.
    """
    if is_remote(path):
        import fsspec

        try:
            opened = fsspec.open(path, "rb").open()  # pyright: ignore[reportAttributeAccessIssue]  # one path, one file
        except (ImportError, ValueError) as error:  # fsspec names the package that is missing
            raise ClaraError(f"{path}: cannot be opened: {error}") from error
        # A bucket's files read lines of any length only, one request for a block each time.
        file = io.BufferedReader(opened, REMOTE_BLOCK)
    else:
        file = open(path, "rb")
    if path.endswith(GZIP):
        return gzip.open(file)
    if path.endswith(ZSTANDARD):
        return zstd.open(file)
    return file


def checked_utf8(text: str, field: str, where: str) -> str:
    r"""Return the text if it can be written as UTF-8: JSON can hold "\ud83d" alone, which no tokenizer can read.

    Args:
      text: to be checked.
      field: the name of the text's field for messages, e.g. ``"docs"[3]``.
      where: what messages begin with, e.g. "file.jsonl:17".

    Raises:
      ClaraError: half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ClaraError(f"{where}: {field} holds half of a surrogate pair; write the character in UTF-8") from None
    return text


def json_kind(value: Any) -> str:
    """Return a JSON value's type, in words."""
    names = {
        bool: "true or false",
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names[type(value)]


def _write(file: io.BufferedIOBase, value: dict[str, Any]) -> None:
    line = json.dumps(value, ensure_ascii=False)
    # Only names of files, of everything written, can hold characters that are not UTF-8.
    file.write(line.encode("utf-8", "replace") + b"\n")


def _compressed(raw: io.BufferedIOBase, name: str) -> contextlib.AbstractContextManager[io.BufferedIOBase]:
    if name.endswith(GZIP):
        return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # neither name nor time in its head
    if name.endswith(ZSTANDARD):
        return zstd.open(raw, "wb")
    return contextlib.nullcontext(raw)


def _local_files(path: str) -> list[str]:
    # A name with brackets in it may be a file before it is a pattern.
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))


def _remote_files(path: str, field: str) -> list[str]:
    import fsspec

    try:
        system, name = fsspec.core.url_to_fs(path)
        found = sorted(system.glob(name)) if glob.has_magic(name) else [name] if system.exists(name) else []
    except Exception as error:  # each driver raises other errors, as those of botocore
        raise ClaraError(f"{field}: {path}: {error}") from error
    return [system.unstrip_protocol(name) for name in found]
