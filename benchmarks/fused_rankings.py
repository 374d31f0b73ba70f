"""Fuse two rankings of the same candidates, by two systems of an evaluation, and compare the fusion with each of them.

    python -m benchmarks.fused_rankings REPORT [--fuse SYSTEM SYSTEM]

REPORT is a directory that `python -m clara_jax.evaluate` wrote with `--report`; nothing is asked again. Rankings are
fused by reciprocal ranks (`clara_jax.retrieval.search.fuse`). Printed is, of each suite that both have ranked, a
table of Recall@1, @3 and @5 in percent with 95 % bootstrap intervals, and what the fusion has more of, in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.runner import PLAN, read_predictions, read_suites
from clara_jax.formats.json_file import read_object
from clara_jax.metrics.bootstrap import Bootstrap, Interval
from clara_jax.metrics.cases import Case
from clara_jax.metrics.ranking import DEPTHS, recall_at
from clara_jax.retrieval.search import ScoredId, fuse

Orders = Mapping[str, tuple[int, ...]]  # by case: candidates, best first


def fused(orders: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return candidates, best first, as the fusion of several orders of them has them."""
    rankings = [[ScoredId(f"{candidate:09}", 0.0) for candidate in order] for order in orders]  # ties: the first ones
    return tuple(int(found.id) for found in fuse(rankings))


def recalls(cases: Sequence[Case], orders: Orders) -> dict[int, np.ndarray]:
    """Return each case's Recall@k by the k of `DEPTHS`."""
    return {k: np.array([_recall(case, orders[case.id], k) for case in cases]) for k in DEPTHS}


def _recall(case: Case, order: tuple[int, ...], k: int) -> float:
    count = len(case.documents)
    relevant = np.isin(np.arange(count), case.positives)[None]
    return float(recall_at(-np.argsort(order)[None], np.ones((1, count), bool), relevant, k)[0])


def table(cases: Sequence[Case], orders: Mapping[str, Orders]) -> list[str]:
    """Return the lines of a table of systems, and of the last of them compared with each of the others.

    Args:
      cases: those that all systems have ranked.
      orders: by system; the last is the fusion of the others.
    """
    bootstrap = Bootstrap(len(cases))
    values = {name: recalls(cases, of) for name, of in orders.items()}
    *parts, fusion = values
    lines = [f"| {len(cases)} questions | {' | '.join(f'Recall@{k}' for k in DEPTHS)} |", "|---" * 4 + "|"]
    for name, of in values.items():
        lines.append(f"| {name} | {' | '.join(_percent(bootstrap.mean(of[k])) for k in DEPTHS)} |")
    for part in parts:
        gains = [bootstrap.difference(values[fusion][k], values[part][k]) for k in DEPTHS]
        lines.append(f"| the fusion - {part} | {' | '.join(map(_percent, gains))} |")
    return lines


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def orders_of(predictions: Sequence[Prediction]) -> dict[str, tuple[int, ...]]:
    """Return the orders of the cases that a system has ranked."""
    return {found.case: found.order for found in predictions if found.order is not None}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("fused_rankings", __doc__, package="benchmarks")
    parser.add_argument("report", metavar="REPORT", help="a directory that evaluate has made")
    parser.add_argument("--fuse", nargs=2, metavar="SYSTEM", help="two of its systems (each two that rank)")
    return parser


def main() -> None:
    """Print the tables."""
    arguments = parser().parse_args()
    directory = Path(arguments.report)
    systems = list(read_object(directory / PLAN, "name a directory that evaluate has made")["systems"])
    unknown = [name for name in arguments.fuse or () if name not in systems]
    if unknown:
        raise ClaraError(f"--fuse: {directory} has no system {unknown[0]!r}; it has {', '.join(systems)}")
    printed = False
    for suite in read_suites(directory):
        found = read_predictions(directory, suite.name, systems)
        ranked = {name: orders for name, predictions in found.items() if (orders := orders_of(predictions))}
        for pair in [arguments.fuse] if arguments.fuse else combinations(ranked, 2):
            cases = [case for case in suite.cases if all(case.id in ranked.get(name, {}) for name in pair)]
            if not cases:
                continue
            orders = {name: ranked[name] for name in pair}
            both = {case.id: fused([of[case.id] for of in orders.values()]) for case in cases}
            print("\n".join([f"\n{suite.name}\n", *table(cases, orders | {"the fusion": both})]))
            printed = True
    if not printed:
        raise ClaraError(f"{directory}: no two of these systems have ranked candidates of the same case")


if __name__ == "__main__":
    command.run(main)
