"""Files of records and passages, written whole and counted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clara_jax.formats.jsonl import write_json_lines


def write(output: Path, name: str, records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Write a file of the folder; return its name with the number of its lines."""
    count = 0
    with write_json_lines(output / name) as line:
        for record in records:
            line(record)
            count += 1
    return {name: count}
