"""The files that a journal's outcomes are written to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clara_jax.data.jsonl import write_json_lines
from clara_jax.synthesis.journal import Item, Journal, Outcome


@dataclasses.dataclass(frozen=True)
class Written:
    """How many records there are of each kind, and how many were set aside for each reason."""

    records: Mapping[str, int]
    aside: Mapping[str, int]


def aside_file(output: Path) -> Path:
    """Where what was set aside is told, beside the records."""
    name = output.name.partition(".jsonl")
    return output.with_name(f"{name[0]}.aside{name[1]}{name[2]}")


def write(journal: Journal, output: Path, record_of: Callable[[Item, Outcome], Mapping[str, Any]]) -> Written:
    """Writes the records of all finished items, in the order of the items, and beside them what was set aside. The same
    outcomes give the same bytes; both files are whole or as they were.

    Args:
      record_of: the line of an outcome that has a record.
    """
    records, aside = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(write_json_lines(output))
        put_aside = stack.enter_context(write_json_lines(aside_file(output)))
        for item, outcome in journal.outcomes():
            if outcome.record is not None:
                put(dict(record_of(item, outcome)))
                records[outcome.kind] += 1
            else:
                put_aside({"id": item.id, "kind": outcome.kind, "reason": outcome.reason, "detail": outcome.detail})
                aside[outcome.reason or ""] += 1
    return Written(records, aside)
