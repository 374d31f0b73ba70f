"""The output files of a synthesis: records, and rejected items with their reasons."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clara_jax.formats.jsonl import write_json_lines
from clara_jax.synthesis.journal import Item, ItemOutcome, Journal


@dataclasses.dataclass(frozen=True)
class OutputCounts:
    """The number of records of each kind, and of rejected outcomes for each reason."""

    records: Mapping[str, int]
    rejected: Mapping[str, int]


def rejected_file(output: Path) -> Path:
    """Return the file beside the records that lists what was rejected: ``NAME.aside.jsonl``."""
    name = output.name.partition(".jsonl")
    return output.with_name(f"{name[0]}.aside{name[1]}{name[2]}")


def write(journal: Journal, output: Path, record_of: Callable[[Item, ItemOutcome], Mapping[str, Any]]) -> OutputCounts:
    """Write the records of all finished items, in the order of the items, and beside them what was rejected.

    The same outcomes give the same bytes. Where it fails, both files stay as they were.

    Args:
      journal: whose outcomes are written.
      output: the file of the records.
      record_of: makes the line of an outcome that has a record.
    """
    records, rejected = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(write_json_lines(output))
        put_rejected = stack.enter_context(write_json_lines(rejected_file(output)))
        for item, outcome in journal.outcomes():
            if outcome.record is not None:
                put(dict(record_of(item, outcome)))
                records[outcome.kind] += 1
            else:
                put_rejected({"id": item.id, "kind": outcome.kind, "reason": outcome.reason, "detail": outcome.detail})
                rejected[outcome.reason or ""] += 1
    return OutputCounts(records, rejected)
