"""A report's tables as CSV and LaTeX, each within the page as the address of a file that can be saved.

The numbers are those behind a table's cells, in its units (shares in percent), with their intervals and p-values.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping
from typing import Any

NUMBERS = {"mean": "", "low": " low", "high": " high", "p": " p"}  # of a cell, and the ends of their columns' names
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what begins so
Table = Mapping[str, Any]  # of `clara_jax.evaluation.tables`: "corner", "columns", "rows"


def csv_address(table: Table) -> str:
    """Return the address of a table as CSV (`csv_text`)."""
    return _address("text/csv", csv_text(table))


def latex_address(table: Table) -> str:
    """Return the address of a table as LaTeX (`latex_text`)."""
    return _address("text/x-tex", latex_text(table))


def csv_text(table: Table) -> str:
    """Return a table as CSV: a column for each number that any cell of a column has, empty where one has none."""
    cells = [[row["cells"][place] for row in table["rows"]] for place in range(len(table["columns"]))]
    kinds = [[name for name in NUMBERS if name == "mean" or any(name in one["numbers"] for one in of)] for of in cells]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    heads = [f"{column}{NUMBERS[name]}" for column, of in zip(table["columns"], kinds, strict=True) for name in of]
    writer.writerow(map(_shown, [table["corner"], *heads]))
    for row in table["rows"]:
        values = [_shown(row["name"])]
        for cell, names in zip(row["cells"], kinds, strict=True):
            numbers = cell["numbers"] or {"mean": _shown(cell["text"])}
            values += [numbers.get(name, "") for name in names]
        writer.writerow(values)
    return written.getvalue()


def latex_text(table: Table) -> str:
    """Return a table as LaTeX, with the rules of booktabs, intervals in small type, and the best of a column bold."""
    columns = table["columns"]
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines += [_row([escaped(table["corner"]), *map(escaped, columns)]), r"\midrule"]
    for row in table["rows"]:
        lines.append(_row([escaped(row["name"]), *map(_cell, row["cells"])]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(text: str) -> str:
    """Return a text as LaTeX shows it, in one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _cell(cell: Mapping[str, Any]) -> str:
    text = escaped(cell["text"])
    text = rf"\textbf{{{text}}}" if cell["mark"] == "best" else text
    return rf"{text} {{\scriptsize {escaped(cell['interval'])}}}" if cell["interval"] else text


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _shown(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _address(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"
