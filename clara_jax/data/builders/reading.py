"""Lines of JSONL files as items of a stage; a line that is none ends the reading, or is put aside."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic

from clara_jax.data.builders.passages import parse_passage
from clara_jax.data.builders.schema import PASSAGE, RECORD, Item, Schema
from clara_jax.data.jsonl import decode, raw_lines
from clara_jax.data.records import STAGES as RECORD_STAGES
from clara_jax.data.records import check_file, parse_record
from clara_jax.errors import ClaraError

CORPUS = "corpus"
STAGES = (*RECORD_STAGES, CORPUS)


def schema_of(stage: str) -> Schema:
    """What a data set of this stage holds.

    Raises:
      ClaraError: an unknown stage.
    """
    if stage not in STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(STAGES)}")
    return PASSAGE if stage == CORPUS else RECORD


class Rejects:
    """Lines that were put aside, each with its reason, in a JSONL file of its own; ``count`` of them."""

    def __init__(self, path: str | os.PathLike):
        self.count = 0
        self._file = open(path, "w", encoding="utf-8")

    def add(self, where: str, reason: str, line: bytes) -> None:
        self.count += 1
        # What is no UTF-8 is spelled out: the file itself must be readable.
        text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        self._file.write(json.dumps({"where": where, "reason": reason, "line": text}) + "\n")

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class ItemReader(Generic[Item]):
    """Items of files in order, as `clara_jax.data.records.read_records` would give them, one at a time.

    Args:
      files: as `clara_jax.data.jsonl.data_files` finds them.
      stage: one of `STAGES`.
      rejects: takes the lines that are no items; None: the first one is an error.

    Attributes:
      with_positives: records so far that name a positive document.
    """

    def __init__(self, files: Sequence[str], stage: str, rejects: Rejects | None = None):
        schema_of(stage)
        self.files, self.stage, self.rejects, self.with_positives = files, stage, rejects, 0
        self._parse: Callable[[Any, str], Item] = (
            parse_passage if stage == CORPUS else functools.partial(_parse_record, stage)
        )

    def __iter__(self) -> Iterator[Item]:
        """
        Raises:
          ClaraError: a line that is not an item, where there are no ``rejects``; a file that cannot be read or of which
            no line is an item; a retrieval file none of whose records names a positive document.
        """
        for path in self.files:
            found, positive, first = 0, self.with_positives, ""
            for where, line in raw_lines(path):
                try:
                    item = self._parse(decode(line, where), where)
                except ClaraError as error:
                    if self.rejects is None:
                        raise
                    first = first or f"; the first line that is none: {error}"
                    self.rejects.add(where, str(error).removeprefix(f"{where}: "), line)
                    continue
                found += 1
                self.with_positives += bool(getattr(item, "positives", ()))
                yield item
            check_file(path, self.stage, found, self.with_positives - positive, remark=first)


def _parse_record(stage: str, fields: Any, where: str):
    return parse_record(fields, stage, where)
