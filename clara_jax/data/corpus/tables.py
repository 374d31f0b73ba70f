"""The text of CSV and TSV files: a row is a paragraph that names its columns, so that it can be read alone."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence

from clara_jax.errors import ClaraError

LARGEST = 2**28  # characters of the text, in which the columns' names are repeated
DELIMITERS = ",;\t|"
_SAMPLE, _SAMPLE_ROWS = 2**16, 20  # characters and rows by which the delimiter is chosen
_LONGEST_NAME = 80  # characters of a column's name


def table_text(text: str, delimiter: str | None = None) -> str:
    """Return a table as text: "name: Ann; city: Ulm" for each row, or its cells alone where no row names the columns.

    Args:
      text: of the file, in which lines end with a line feed.
      delimiter: between cells; None for the one of `DELIMITERS` that divides the first rows alike.

    Raises:
      ClaraError: a cell that is longer than Python's reader takes, as after a quote that is not closed; a text that
        becomes too large.
    """
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _delimiter(text))
    paragraphs, length = [], 0
    try:
        filled = (cells for cells in ([" ".join(cell.split()) for cell in row] for row in rows) if any(cells))
        first, second = next(filled, []), next(filled, None)
        names = first if second is not None and _is_header(first) else []
        following = itertools.chain([second] if second is not None else [], filled)
        for cells in following if names else itertools.chain([first], following):
            paragraphs.append(_paragraph(cells, names))
            length += len(paragraphs[-1]) + 2
            if length > LARGEST:
                raise ClaraError(f"has more than {LARGEST // 2**20:,} MiB of text; divide it, or write it as JSONL")
    except csv.Error as error:
        raise ClaraError(f"line {rows.line_num}: {error}; is a quote before it not closed?") from None
    return "\n\n".join(paragraphs)


def _delimiter(text: str) -> str:
    """Return the delimiter that divides most of the first rows into as many cells as the first one, at least two."""
    start = text[:_SAMPLE]

    def alike(delimiter: str) -> tuple[int, int]:
        try:
            rows = itertools.islice(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter), _SAMPLE_ROWS)
            counts = [len(row) for row in rows if row]
        except csv.Error:
            return 0, 0
        return (counts.count(counts[0]), counts[0]) if counts and counts[0] > 1 else (0, 0)

    return max(DELIMITERS, key=alike)


def _is_header(cells: Sequence[str]) -> bool:
    """Return whether cells are names of columns: short, different, none of them empty or a number."""
    names = {cell for cell in cells if 0 < len(cell) <= _LONGEST_NAME and not _is_number(cell)}
    return len(names) == len(cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _paragraph(cells: Sequence[str], names: Sequence[str]) -> str:
    pairs = itertools.zip_longest(names, cells, fillvalue="")
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell)
