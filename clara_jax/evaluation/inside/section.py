"""What a look has found, ready for a report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clara_jax.evaluation.intervals import Bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; grey is read on light and dark.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#808080"
_DIGITS = 4
_STYLE = {
    "svg.hashsalt": "clara_jax",  # the same picture is the same text
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
} | {name: GREY for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}


def section(
    title: str,
    text: str,
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[Any]] = (),
    picture: str | None = None,
) -> dict[str, Any]:
    """A section of a report, all of it JSON: {"title", "text", "table": {"columns", "rows"} or None, "picture"}.

    Args:
      text: plain sentences.
      rows: of the table, texts and numbers; numbers are rounded, those that are not finite become None.
      picture: as `embed` makes it.
    """
    table = {"columns": list(columns), "rows": [[_plain(cell) for cell in row] for row in rows]} if rows else None
    return {"title": title, "text": text, "table": table, "picture": picture}


def percent(share: float) -> str:
    """0.1234 -> "12.3 %"."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def compared(own: np.ndarray, control: np.ndarray, seed: int) -> str:
    """ "12.3 % against 4.5 % (difference 7.8 %, 95 % interval 5.0 % to 10.1 %)": means of two paired shares, [n] each,
    over the cases where both are known."""
    difference = Bootstrap(len(own), seed=seed).difference(own, control)
    both = ~np.isnan(own + control)
    if not both.any():
        return "unknown, for no case has both"
    interval = (
        "" if math.isnan(difference.low) else f", 95 % interval {percent(difference.low)} to {percent(difference.high)}"
    )
    return (
        f"{percent(own[both].mean())} against {percent(control[both].mean())} "
        f"(difference {percent(difference.mean)}{interval})"
    )


def draw(panels: int) -> tuple[Figure, Sequence[Any]]:
    """A figure, and its axes side by side; give it to `embed`."""
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
    """Names what is drawn: inside the axes, or below them where it would hide something."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2} if below else {}
    axes.legend(frameon=False, labelcolor=GREY, fontsize="small", **place)


def embed(figure: Figure) -> str:
    """The figure as a "data:" address: SVG without a background of its own."""
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
