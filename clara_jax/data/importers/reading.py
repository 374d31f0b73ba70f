"""Published files, record by record: each is converted, left out, or refused alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from clara_jax.data.importers.examples import Log
from clara_jax.data.importers.fields import Fields
from clara_jax.formats.jsonl import decode

Made = TypeVar("Made")


def each_record(
    read: Callable[[str], Iterator[tuple[str, Any]]],
    paths: Sequence[str],
    make: Callable[[Fields, Log], Made | None],
    log: Log | None,
) -> Iterator[Made]:
    """Convert the objects in some files, in order.

    Args:
      read: the file's form: `clara_jax.formats.jsonl.raw_lines` (an object a line) or `json_files.read_array`.
      paths: of the files.
      make: converts a record; gives None for one that is left out.
      log: collects what is left out; None: the first refused record is an error.

    Raises:
      ClaraError: a file that cannot be read; a record that ``make`` refuses, unless ``log`` collects them.
    """
    log = log or Log()
    for path in paths:
        for where, content in read(path):
            with log.record(where, content):
                value = decode(content, where) if isinstance(content, bytes) else content  # a line, or decoded already
                made = make(Fields(value, where), log)
                if made is not None:
                    yield made
