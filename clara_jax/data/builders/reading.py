"""Lines of JSONL files as items of a stage; a line that is none ends the reading, or is rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, cast

from clara_jax.data.builders.schema import PASSAGE, RECORD, Item, Schema
from clara_jax.data.layout import CORPUS, STAGES
from clara_jax.data.passages import parse_passage
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import Rejects, parse_lines
from clara_jax.input_pipeline.records import check_file, parse_record


def schema_of(stage: str) -> Schema:
    """Return the schema of the items of a stage's data set.

    Raises:
      ClaraError: an unknown stage.
    """
    if stage not in STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(STAGES)}")
    return PASSAGE if stage == CORPUS else RECORD


class ItemReader(Generic[Item]):
    """Items of files in order, as `clara_jax.input_pipeline.records.read_records` would give them, one at a time.

    Args:
      files: as `clara_jax.formats.jsonl.data_files` finds them.
      stage: one of `STAGES`.
      rejects: takes the lines that are no items; None: the first one is an error.

    Attributes:
      with_positives: records so far that name a positive document.
    """

    def __init__(self, files: Sequence[str], stage: str, rejects: Rejects | None = None):
        schema_of(stage)
        self.files, self.stage, self.rejects, self.with_positives = files, stage, rejects, 0
        parse_item = parse_passage if stage == CORPUS else lambda fields, where: parse_record(fields, stage, where)
        self._parse = cast(Callable[[Any, str], Item], parse_item)  # which of the two depends on the stage alone

    def __iter__(self) -> Iterator[Item]:
        """Yield the items of all files, in order.

        Raises:
          ClaraError: a line that is not an item, where there are no ``rejects``; a file that cannot be read or of which
            no line is an item; a retrieval file none of whose records names a positive document.
        """
        for path in self.files:
            found, positive = 0, self.with_positives
            for item in parse_lines(path, self._parse, self.rejects):
                found += 1
                self.with_positives += bool(getattr(item, "positives", ()))
                yield item
            check_file(path, self.stage, found, self.with_positives - positive, self.rejects)
