"""Plots of a run's metrics file, one column a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.files import replaced_when_whole
from clara_jax.metrics.controls import HELD_OUT_CONTROLS

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
# Of a value and its controls.
LABELS = {"": ""} | {f"_{name}": f", {label}" for name, label in HELD_OUT_CONTROLS.items()}
CASES = dict(zip(LABELS, ("-", ":", "--"), strict=True))  # line styles
SMOOTHED = 0.1  # share of a stage's rows over which the training loss is smoothed
MetricRows = Sequence[Mapping[str, Any]]


def draw(rows: MetricRows, path: Path) -> None:
    """Draw the curves of a run.

    Each stage has, from top to bottom: training and held-out loss; answers and ranking with their controls; gradient
    norm and learning rate.

    Args:
      rows: as `clara_jax.training.metrics.read_metrics` gives them. Values that are absent or not finite are left out.
      path: a .png file; written in one move, so that a viewer never sees half of it.

    Raises:
      ClaraError: the file cannot be written.
    """
    # Not pyplot: no window system, no state shared with a program that draws its own pictures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(row["stage"] for row in rows if "step" in row and "stage" in row))
    panels = [_draw_loss, _draw_quality, _draw_step] if any(map(_has_quality, rows)) else [_draw_loss, _draw_step]
    columns = max(1, len(stages))
    figure = Figure(figsize=(6 * columns, 3.4 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for column, stage in enumerate(stages):
        stage_rows = [row for row in rows if row.get("stage") == stage and "step" in row]
        for row, panel in enumerate(panels):
            panel(grid[row, column], stage_rows)
        grid[0, column].set_title(stage, fontweight="bold")
    if not stages:
        for axes in grid.flat:
            axes.set_axis_off()
        grid[0, 0].text(0.5, 0.5, "no steps yet", ha="center", va="center")
    with replaced_when_whole(path, "the curves cannot be written") as temporary:
        figure.savefig(temporary, format="png")


def _draw_loss(axes: Any, rows: MetricRows) -> None:
    """Draw the loss in all its parts; of the controls only the cross-entropy is known."""
    steps, losses = _series(rows, "loss")
    if steps.size:
        axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8, **_marker(steps))
        axes.plot(steps, _smooth(losses), color=BLUE, linewidth=1.8, label="training")
    _plot_cases(axes, rows, "loss", VERMILION, "held-out")
    for case in ("_no_memory", "_other_memory"):
        _plot(axes, rows, f"eval_ce{case}", VERMILION, f"held-out CE{LABELS[case]}", CASES[case])
    _finish(axes, "loss")


def _draw_quality(axes: Any, rows: MetricRows) -> None:
    if not any(map(_has_quality, rows)):
        axes.set_axis_off()
        return
    _plot_cases(axes, rows, "exact_match", BLUE, "exact match")
    _plot_cases(axes, rows, "f1", ORANGE, "F1")
    for name, colour in (("recall@1", GREEN), ("recall@3", PURPLE), ("recall@5", VERMILION)):
        _plot_cases(axes, rows, name, colour, name.capitalize())
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "answers and ranking")


def _draw_step(axes: Any, rows: MetricRows) -> None:
    _plot(axes, rows, "grad_norm", BLUE, "gradient norm", "-", width=1.0)
    _, norms = _series(rows, "grad_norm")
    if (norms > 0).any():
        axes.set_yscale("log", nonpositive="mask")
    rates = axes.twinx()
    _plot(rates, rows, "learning_rate", ORANGE, "learning rate", "-")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    lines = [*axes.get_lines(), *rates.get_lines()]
    _finish(axes, "gradient norm", lines)


def _has_quality(row: Mapping[str, Any]) -> bool:
    return any(name.startswith(("eval_exact_match", "eval_f1", "eval_recall@")) for name in row)


def _plot_cases(axes: Any, rows: MetricRows, name: str, colour: str, label: str) -> None:
    """Draw a held-out value, with its controls where there are any."""
    for case, style in CASES.items():
        _plot(axes, rows, f"eval_{name}{case}", colour, f"{label}{LABELS[case]}", style)


def _plot(axes: Any, rows: MetricRows, name: str, colour: str, label: str, style: str, width: float = 1.5) -> None:
    steps, values = _series(rows, name)
    if steps.size:
        marked = _marker(steps) or ({"marker": "o", "markersize": 3} if name.startswith("eval_") else {})
        axes.plot(steps, values, style, color=colour, linewidth=width, label=label, **marked)


def _finish(axes: Any, label: str, lines: Sequence[Any] | None = None) -> None:
    axes.set_ylabel(label)
    axes.set_xlabel("step", labelpad=1)
    axes.grid(alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles = [line for line in lines or axes.get_lines() if not line.get_label().startswith("_")]
    if handles:
        # Below the axes: inside, nine names would hide what they name.
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19), "borderaxespad": 0}
        axes.legend(handles=handles, fontsize="small", frameon=False, ncols=2 if len(handles) <= 4 else 3, **place)


def _series(rows: MetricRows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the rows that have a finite number by this name."""
    pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a window around each value, smaller at the ends."""
    half = int(len(values) * SMOOTHED) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _marker(steps: np.ndarray) -> dict[str, Any]:
    """Return the style of a dot for a single point, which would not be seen as a line."""
    return {"marker": "o", "markersize": 4} if len(steps) == 1 else {}
