"""Two evaluations of the same cases, case by case: which differences are more than chance?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.checkpoints.json_file import read_object
from clara_jax.evaluation.cases import Suite
from clara_jax.evaluation.console import table
from clara_jax.evaluation.intervals import Bootstrap
from clara_jax.evaluation.measures import Measures, plain
from clara_jax.evaluation.outcomes import Outcome
from clara_jax.evaluation.report import in_order, model_of, way_of
from clara_jax.evaluation.runner import PLAN, read_outcomes, read_suites
from clara_jax.evaluation.scoring import METRICS
from clara_jax.evaluation.wording import amount, chance, change, interval

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
    """Differences b - a of suites that ask the same, with paired intervals.

    Args:
      a, b: directories of two evaluations, or twice the same.
      systems: which of a's is compared with which of b's; a name without way, "trained", stands for all ways of a
        model. None: those of the same name.
      seed, resamples: of the bootstrap.

    Returns:
      {"a", "b", "seed", "resamples", "level", "notes", "rows"}. Notes are sentences about what could not be compared. A
      row is {"suite", "system", "other" (its name in b), "metric", "a" and "b" (their means over the cases that both
      have), "mean", "low", "high", "n", "p", "holm", "comparisons"}: the p-value by Holm's (1979) method allows for all
      comparisons of this metric.

    Raises:
      ClaraError: a directory cannot be read, or an outcome does not go with its case.
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
            outcomes = [read_outcomes(path, name, known[path]) for path in (a, b)]
            found, said = _compare(suite, *outcomes, systems, Bootstrap(len(suite.cases), resamples, seed, LEVEL))
            rows += found
            notes += [f"{name}: {line}" for line in said]
    for metric in METRICS:
        _correct([row for row in rows if row["metric"] == metric])
    settings = {"seed": seed, "resamples": resamples, "level": LEVEL}
    return {"a": str(a), "b": str(b), **settings, "notes": notes, "rows": rows}


def text(comparison: Mapping[str, Any], metrics: Sequence[str] = SHOWN) -> str:
    """The comparison as a table, and what could not be compared."""
    parts = [f"b - a of the same cases; a: {comparison['a']}, b: {comparison['b']}"]
    rows = [row for metric in metrics for row in comparison["rows"] if row["metric"] == metric]
    if rows:
        bounds = f"{100 * comparison['level']:g}% interval"
        head = ["", "metric", "cases", "a", "b", "b - a", bounds, "p", "p (Holm)"]
        parts.append(table(head, [_line(row) for row in rows]))
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
    a: Mapping[str, Sequence[Outcome]],
    b: Mapping[str, Sequence[Outcome]],
    systems: Mapping[str, str] | None,
    draws: Bootstrap,
) -> tuple[list[dict[str, Any]], list[str]]:
    pairs = _pairs(in_order(a), in_order(b), systems)
    notes = [f"{own} is not in a" for own, _ in pairs if own not in a]
    notes += [f"{other} is not in b" for _, other in pairs if other not in b]
    pairs = [(own, other) for own, other in pairs if own in a and other in b]
    outcomes = {A + name: a[name] for name, _ in pairs} | {B + name: b[name] for _, name in pairs}
    measures = Measures(suite, outcomes, draws)
    rows = []
    for own, other in pairs:
        differences = measures.differences(B + other, A + own)
        for metric, found in differences.items():
            common = measures.known(A + own, metric) & measures.known(B + other, metric)
            means = {
                side: measures.means(side + name, (metric,), common)[metric]["mean"]
                for side, name in ((A, own), (B, other))
            }
            names = {"suite": suite.name, "system": own, "other": other, "metric": metric}
            rows.append({**names, "a": means[A], "b": means[B], **found})
    return rows, notes


def _pairs(a: Sequence[str], b: Sequence[str], systems: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """Which of a's systems goes with which of b's; one of them may be missing."""
    if systems is None:
        return [(name, name) for name in dict.fromkeys((*a, *b))]
    found = []
    for own, other in systems.items():
        if "/" in own:
            found.append((own, other))
        else:
            ways = [way_of(name) for name in a if model_of(name) == own]
            found += [(f"{own}/{way}", f"{other}/{way}") for way in ways] or [(own, other)]
    return found


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Adds Holm's p-values: the smallest times the number of all, the next times one less, and none below the one
    before."""
    tested = sorted((row for row in rows if row["p"] is not None), key=lambda row: row["p"])
    for row in rows:
        row |= {"holm": None, "comparisons": len(tested)}
    least = 0.0
    for place, row in enumerate(tested):
        least = max(least, min(1.0, row["p"] * (len(tested) - place)))
        row["holm"] = plain(least)
