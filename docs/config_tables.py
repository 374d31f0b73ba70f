"""The tables of the configuration in docs/training.md, made from the descriptions of the fields.

    python -m docs.config_tables

writes those that stand there anew; ``tests/training/test_config_tables.py`` checks that they are current.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from clara_jax.config_checks import allowed, hints
from clara_jax.data.synthetic_world import SyntheticConfig, SyntheticRecordsConfig, SyntheticWorldConfig
from clara_jax.method.clara import ClaraConfig
from clara_jax.training.config import ModelSection, ReportingConfig, RunConfig, RunSavingConfig, ScratchSection
from clara_jax.training.stage_config import (
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    StageConfig,
    StageSavingConfig,
    TopKConfig,
)

PAGE = Path(__file__).parent / "training.md"
SECTIONS = (
    RunConfig,
    RunSavingConfig,
    ReportingConfig,
    ModelSection,
    ScratchSection,
    SyntheticConfig,
    SyntheticWorldConfig,
    SyntheticRecordsConfig,
    ClaraConfig,
    StageConfig,
    DataConfig,
    OptimizerConfig,
    ObjectiveConfig,
    TopKConfig,
    EvaluationConfig,
    StageSavingConfig,
)
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(cls: type) -> str:
    """Return the table of a section's fields: name, default, what is allowed, what it is; groups have other tables."""
    found = descriptions(cls)
    lines = ["| field | default | allowed | |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name in found:
            text = _capitalized(_linked(found[field.name]))
            cells = (f"`{field.name}`", _default(field.default), allowed(hints(cls)[field.name]), text)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def descriptions(cls: type) -> dict[str, str]:
    """Return what a section says of its fields: below each of them, or in its docstring's list of attributes."""
    fields = getattr(cls, "__pydantic_fields__", None)
    if fields is not None:
        return {name: " ".join(field.description.split()) for name, field in fields.items() if field.description}
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def with_tables(page: str) -> str:
    """Return a page with the table of each section between its marks."""
    sections = {cls.__name__: cls for cls in SECTIONS}
    return _TABLE.sub(lambda found: f"{found[1]}{table(sections[found[2]])}{found[3]}", page)


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    if value is None or value == ():
        return "none"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _linked(text: str) -> str:
    """Return a description with links to the pages that it names, as they are from docs/training.md."""
    text = re.sub(r"docs/training\.md#([\w-]+)", r"[below](#\1)", text)
    return re.sub(r"docs/(\w+)\.md(#[\w-]+)?", r"[\1.md](\1.md\2)", text)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # a Greek letter is a symbol


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
