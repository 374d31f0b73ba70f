"""JSONL files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clara_jax.data.jsonl import GZIP, ZSTANDARD, zstd
from clara_jax.files import replaced_when_whole


@contextlib.contextmanager
def json_lines(path: str | os.PathLike) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes one object; the file is there when the block has ended well, and else as it was before.

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


def _write(file: BinaryIO, value: dict[str, Any]) -> None:
    line = json.dumps(value, ensure_ascii=False)
    # Of all that is written only the names of files can hold what is not UTF-8.
    file.write(line.encode("utf-8", "replace") + b"\n")


def _compressed(raw: BinaryIO, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name.endswith(GZIP):
        return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # neither name nor time in its head
    if name.endswith(ZSTANDARD):
        return zstd.open(raw, "wb")
    return contextlib.nullcontext(raw)
