"""Small SVG charts for a page: no library, a few kilobytes each.

Colours and strokes are CSS classes that the page styles, so that they follow its light and dark: ``s0`` to ``s7`` for
the series of a line or dot, ``axis``, ``grid``, ``hollow`` for controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

COLOURS = 8
WIDTH, HEIGHT = 360, 232  # of charts, in pixels of a phone; wider screens scale them
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 10, 40
Point = tuple[float, float]


def colour(index: int) -> str:
    """Return the CSS classes of the index-th series; after `COLOURS` of them the colours repeat, dashed."""
    return f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def strip(mean: float, low: float, high: float, bounds: Point, hollow: bool = False) -> str:
    """Draw an interval and its mean on a line from ``bounds[0]`` to ``bounds[1]``, as wide as its container.

    Args:
      mean: drawn as a dot; what lies outside of the bounds is drawn at them.
      low: of the interval; the mean where there is none.
      high: likewise.
      bounds: values at the ends of the line.
      hollow: the style of controls.
    """
    places = [_share(value, bounds) for value in (low, mean, high)]
    left, middle, right = (f"{3 + 94 * place:.2f}%" for place in places)
    return (
        f'<svg class="strip{" hollow" if hollow else ""}" width="100%" height="18" aria-hidden="true">'
        '<line class="grid" x1="3%" x2="97%" y1="9" y2="9"/>'
        f'<line class="interval" x1="{left}" x2="{right}" y1="9" y2="9"/>'
        f'<circle cx="{middle}" cy="9" r="4.5"/></svg>'
    )


def lines(title: str, series: Sequence[Sequence[Point]], x_label: str, y_label: str) -> str:
    """Draw a chart of lines over few x values, which are the ticks; y from 0 to 1.

    The i-th line has the classes `colour` (i).
    """
    xs = sorted({x for points in series for x, _ in points})
    places = {x: _LEFT + (WIDTH - _LEFT - _RIGHT) * (i + 0.5) / len(xs) for i, x in enumerate(xs)}
    parts = _axes([(places[x], f"{x:g}") for x in xs], x_label, y_label)
    for index, points in enumerate(series):
        at = [(places[x], _height(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<g class="{colour(index)}"><polyline points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at]
        parts.append("</g>")
    return _chart(title, parts)


def scatter(
    title: str, points: Sequence[tuple[str, float, float]], hollow: Sequence[Point], x_label: str, y_label: str
) -> str:
    """Draw a chart of dots, x on a logarithmic scale, y from 0 to 1.

    Args:
      title: the chart's accessible name.
      points: a short text inside the dot, x above 0, y. Dots that would hide each other are moved sideways.
      hollow: small dots without a text.
      x_label: of the horizontal axis.
      y_label: of the vertical axis.
    """
    xs = [x for _, x, _ in points] + [x for x, _ in hollow]
    low, high = min([1.0, *xs]), max([2.0, *xs])
    margin = 0.07 * math.log(high / low)
    span = (math.log(low) - margin, math.log(high) + margin)
    ticks = [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]

    def place(x: float, y: float) -> Point:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * _share(math.log(x), span), _height(y)

    parts = _axes([(place(tick, 0)[0], f"{tick:g}×") for tick in ticks], x_label, y_label)
    for x, y in (place(*point) for point in hollow):
        parts.append(f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    dots = _apart([place(x, y) for _, x, y in points])
    for (text, _, _), (x, y) in zip(points, dots, strict=True):
        parts.append(
            f'<g class="dot"><circle cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
            f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle">{escape(text)}</text></g>'
        )
    return _chart(title, parts)


def _chart(title: str, parts: Sequence[str]) -> str:
    name = escape(title)
    body = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{body}</svg>'


def _axes(ticks: Sequence[tuple[float, str]], x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = _height(value)
        parts.append(
            f'<line class="{"grid" if value else "axis"}" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>' for x, text in ticks]
    middle, height = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(11 {height:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _apart(points: Sequence[Point]) -> list[Point]:
    """Move each point sideways to the nearest place where it hides no earlier one."""
    placed: list[Point] = []
    for x, y in points:
        steps = (step * sign for step in range(0, WIDTH, 4) for sign in (1, -1))
        free = (x + step for step in steps if all(math.hypot(x + step - a, y - b) >= 15 for a, b in placed))
        placed.append((next(free, x), y))
    return placed


def _height(value: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - _share(value, (0.0, 1.0)))


def _share(value: float, bounds: Point) -> float:
    low, high = bounds
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
