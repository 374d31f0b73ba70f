"""Sections of a report: text, tables and pictures of an analysis."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clara_jax.metrics.bootstrap import Bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colours, distinguishable with any kind of colour vision; grey is legible on light and dark.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#808080"
_DIGITS = 4
_STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "clara_jax",  # the same picture is the same text
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def section(
    title: str,
    text: str,
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[Any]] = (),
    picture: str | None = None,
) -> dict[str, Any]:
    """Return a section of a report as JSON: {"title", "text", "table": {"columns", "rows"} or None, "picture"}.

    Args:
      title: of the section.
      text: plain sentences.
      columns: heads of the table's columns.
      rows: of the table, texts and numbers; numbers are rounded, those that are not finite become None.
      picture: as `embed` makes it.
    """
    table = {"columns": list(columns), "rows": [[_plain(cell) for cell in row] for row in rows]} if rows else None
    return {"title": title, "text": text, "table": table, "picture": picture}


def percent(share: float) -> str:
    """Return a share in percent: 0.1234 -> "12.3 %"."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def compared(values: np.ndarray, control: np.ndarray, seed: int) -> str:
    """Return means of two paired shares, [n] each, with their difference, over the cases where both are known.

    The text is like "12.3 % against 4.5 % (difference 7.8 %, 95 % interval 5.0 % to 10.1 %)".
    """
    difference = Bootstrap(len(values), seed=seed).difference(values, control)
    both = ~np.isnan(values + control)
    if not both.any():
        return "unknown, for no case has both"
    interval = (
        "" if math.isnan(difference.low) else f", 95 % interval {percent(difference.low)} to {percent(difference.high)}"
    )
    return (
        f"{percent(values[both].mean())} against {percent(control[both].mean())} "
        f"(difference {percent(difference.mean)}{interval})"
    )


def draw(panels: int) -> tuple[Figure, Sequence[Any]]:
    """Return a new figure and its axes, side by side; `embed` ends it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * panels, 3.1), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.set_facecolor("none")
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Any, below: bool = False) -> None:
    """Add a legend inside the axes, or below them where it would hide something."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2} if below else {}
    axes.legend(frameon=False, labelcolor=GREY, fontsize="small", **place)


def embed(figure: Figure) -> str:
    """Return the figure as a "data:" address of SVG with a transparent background."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(cell: Any) -> Any:
    if isinstance(cell, (bool, np.bool_)):
        return bool(cell)
    if isinstance(cell, (int, np.integer)):
        return int(cell)
    if isinstance(cell, (float, np.floating)):
        return float(f"{cell:.{_DIGITS}g}") if math.isfinite(cell) else None
    return cell
