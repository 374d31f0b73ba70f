"""Compare two evaluations of the same cases, case by case, and test whether differences exceed chance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.report import condition_of, in_order, model_of
from clara_jax.evaluation.runner import PLAN, read_predictions, read_suites
from clara_jax.evaluation.scoring import METRICS, Aggregator, plain
from clara_jax.evaluation.tables import aligned, amount, chance, change, interval
from clara_jax.formats.json_file import read_object
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.cases import Suite

SHOWN = (
    *("f1", "exact_match", "cover_match", "followed", "tokens_right", "rougeL", "recall@1", "recall@5"),
    *("effective_rate", "compress_rate", "total_ms"),
)
LEVEL = 0.95
A, B = "a:", "b:"  # before the names of systems, since both may have the same


def compare(
    a: str | os.PathLike,
    b: str | os.PathLike,
    systems: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Return the differences b - a of suites that ask the same, with paired intervals.

    Args:
      a: directory of an evaluation.
      b: directory of another evaluation, or the same.
      systems: a's systems to those of b that they are compared with; a name without condition, "trained", stands for
        all conditions of a model. None: those of the same name.
      seed: of the bootstrap.
      resamples: draws of the bootstrap.

    Returns:
      {"a", "b", "seed", "resamples", "level", "notes", "rows"}. Notes are sentences about what could not be compared. A
      row is {"suite", "system", "other" (its name in b), "metric", "a" and "b" (their means over the cases that both
      have), "mean", "low", "high", "n", "p", "holm", "comparisons"}: "holm" is the p-value corrected for all
      comparisons of this metric by Holm's (1979) method.

    Raises:
      ClaraError: a directory cannot be read, or a prediction does not go with its case.
    """
    a, b = Path(a), Path(b)
    suites, others = ({suite.name: suite for suite in read_suites(path)} for path in (a, b))
    known = {path: read_object(path / PLAN, "name a directory that evaluate has made")["systems"] for path in (a, b)}
    notes = [f"{name}: is only in {a}" for name in suites if name not in others]
    notes += [f"{name}: is only in {b}" for name in others if name not in suites]
    rows = []
    for name, suite in suites.items():
        if name in others and suite.digest() != others[name].digest():
            notes.append(f"{name}: does not ask the same in both")
        elif name in others:
            predictions = [read_predictions(path, name, known[path]) for path in (a, b)]
            found, missing = _compare(suite, *predictions, systems, Bootstrap(len(suite.cases), resamples, seed, LEVEL))
            rows += found
            notes += [f"{name}: {line}" for line in missing]
    for metric in METRICS:
        _correct([row for row in rows if row["metric"] == metric])
    settings = {"seed": seed, "resamples": resamples, "level": LEVEL}
    return {"a": str(a), "b": str(b), **settings, "notes": notes, "rows": rows}


def text(comparison: Mapping[str, Any], metrics: Sequence[str] = SHOWN) -> str:
    """Return the comparison as a table of text, followed by its notes.

    Args:
      comparison: the result of `compare`.
      metrics: those of which rows are shown, in this order.
    """
    parts = [f"b - a of the same cases; a: {comparison['a']}, b: {comparison['b']}"]
    rows = [row for metric in metrics for row in comparison["rows"] if row["metric"] == metric]
    if rows:
        bounds = f"{100 * comparison['level']:g}% interval"
        head = ["", "metric", "cases", "a", "b", "b - a", bounds, "p", "p (Holm)"]
        parts.append(aligned(head, [_line(row) for row in rows]))
        count = max(row["comparisons"] for row in rows)
        parts.append(f"p (Holm) allows for all comparisons of a metric, {count} at most.")
    parts += comparison["notes"]
    return "\n".join(parts)


def _line(row: Mapping[str, Any]) -> list[str]:
    unit = METRICS[row["metric"]].unit
    system = row["system"] if row["system"] == row["other"] else f"{row['system']} / {row['other']}"
    values = [amount(row["a"], unit), amount(row["b"], unit), change(row, unit), interval(row, unit)]
    name = f"{row['suite']}: {system}"
    return [name, row["metric"], str(row["n"]), *values, chance(row["p"]), chance(row["holm"])]


def _compare(
    suite: Suite,
    a: Mapping[str, Sequence[Prediction]],
    b: Mapping[str, Sequence[Prediction]],
    systems: Mapping[str, str] | None,
    draws: Bootstrap,
) -> tuple[list[dict[str, Any]], list[str]]:
    pairs = _pairs(in_order(a), in_order(b), systems)
    notes = [f"{left} is not in a" for left, _ in pairs if left not in a]
    notes += [f"{right} is not in b" for _, right in pairs if right not in b]
    pairs = [(left, right) for left, right in pairs if left in a and right in b]
    predictions = {A + name: a[name] for name, _ in pairs} | {B + name: b[name] for _, name in pairs}
    aggregator = Aggregator(suite, predictions, draws)
    rows = []
    for left, right in pairs:
        differences = aggregator.differences(B + right, A + left)
        for metric, found in differences.items():
            common = aggregator.known(A + left, metric) & aggregator.known(B + right, metric)
            means = {
                side: aggregator.means(side + name, (metric,), common)[metric]["mean"]
                for side, name in ((A, left), (B, right))
            }
            names = {"suite": suite.name, "system": left, "other": right, "metric": metric}
            rows.append({**names, "a": means[A], "b": means[B], **found})
    return rows, notes


def _pairs(a: Sequence[str], b: Sequence[str], systems: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """Return the pairs of a's and b's systems to compare; one of a pair may be missing."""
    if systems is None:
        return [(name, name) for name in dict.fromkeys((*a, *b))]
    found = []
    for left, right in systems.items():
        if "/" in left:
            found.append((left, right))
        else:
            conditions = [condition_of(name) for name in a if model_of(name) == left]
            found += [(f"{left}/{condition}", f"{right}/{condition}") for condition in conditions] or [(left, right)]
    return found


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Add Holm's p-values to the rows.

    The smallest p is multiplied by the number of tests, the next by one less, and so on; none is below the one before.
    """
    tested = sorted((row for row in rows if row["p"] is not None), key=lambda row: row["p"])
    for row in rows:
        row |= {"holm": None, "comparisons": len(tested)}
    least = 0.0
    for place, row in enumerate(tested):
        least = max(least, min(1.0, row["p"] * (len(tested) - place)))
        row["holm"] = plain(least)
