"""Formatting of a report's numbers, for the page and the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIGNS = {"share": "%", "ms": "ms", "times": "×", "tokens": "", "bytes": "B"}
NOTHING = "–"


def amount(value: float | None, unit: str) -> str:
    """Return a number as text without its unit, shares in percent; "–" where there is none."""
    if value is None:
        return NOTHING
    if unit == "share":
        return _minus(f"{100 * value:.1f}")
    return _minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}")


def interval(statistic: Mapping[str, Any], unit: str) -> str:
    """Return the bounds of an interval as text; empty where there is none."""
    if statistic["low"] is None:
        return ""
    low, high = amount(statistic["low"], unit), amount(statistic["high"], unit)
    return f"{low} to {high}" if statistic["low"] < 0 else f"{low}–{high}"


def change(difference: Mapping[str, Any], unit: str) -> str:
    """Return a difference as text with its plus or minus."""
    value = amount(difference["mean"], unit)
    return f"+{value}" if difference["mean"] > 0 else value


def chance(p: float | None) -> str:
    """Return a p-value as text."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def titled(metric: Mapping[str, Any]) -> str:
    """Return a metric's title and unit, short enough for the head of a column."""
    sign = SIGNS[metric["unit"]]
    return metric["title"].partition(":")[0] + (f" ({sign})" if sign else "")


def _minus(text: str) -> str:
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")
