"""Fuse two rankings of the same candidates, by two systems of an evaluation, and compare the fusion with each of them.

    python -m benchmarks.fused_rankings REPORT [--fuse SYSTEM SYSTEM]

REPORT is a directory that `python -m clara_jax.evaluate` wrote with `--report`; nothing is asked again. Rankings are
fused by reciprocal ranks (`clara_jax.retrieval.search.fuse`). Printed is, of each suite that both have ranked, a
table of Recall@1, @3 and @5 in percent with 95 % bootstrap intervals, and what the fusion has more of, in points.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.runner import PLAN, read_predictions, read_suites
from clara_jax.evaluation.scoring import METRICS, Aggregator
from clara_jax.evaluation.tables import NOTHING, with_interval
from clara_jax.formats.json_file import read_object
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.cases import Suite
from clara_jax.metrics.ranking import DEPTHS
from clara_jax.retrieval.search import ScoredId, fuse

RECALLS = {f"recall@{k}": f"Recall@{k}" for k in DEPTHS}  # metrics by name, and their titles
FUSION = "the fusion"


def fused(orders: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return candidates, best first, as the fusion of several orders of them has them."""
    rankings = [[ScoredId(f"{candidate:09}", 0.0) for candidate in order] for order in orders]  # ties: the first ones
    return tuple(int(found.id) for found in fuse(rankings))


def table(suite: Suite, orders: Mapping[str, Mapping[str, tuple[int, ...]]]) -> list[str]:
    """Return the lines of a table of systems and of their fusion, and of the fusion compared with each of them.

    Cases count that all systems have ranked; where there is none, the table is empty.

    Args:
      suite: of the cases.
      orders: by system, then by case: candidates, best first.
    """
    cases = [case for case in suite.cases if all(case.id in of for of in orders.values())]
    if not cases:
        return []
    common = dataclasses.replace(suite, cases=tuple(cases))
    orders = {**orders, FUSION: {case.id: fused([of[case.id] for of in orders.values()]) for case in cases}}
    predictions = {name: [Prediction(case.id, order=of[case.id]) for case in cases] for name, of in orders.items()}
    found = Aggregator(common, predictions, Bootstrap(len(cases)))
    rows = {name: found.means(name, list(RECALLS)) for name in orders}
    for name in list(orders)[:-1]:
        rows[f"{FUSION} - {name}"] = found.differences(FUSION, name, list(RECALLS))
    lines = [f"| {len(cases)} questions | {' | '.join(RECALLS.values())} |", "|---" * 4 + "|"]
    return lines + [f"| {name} | {' | '.join(_cell(of, metric) for metric in RECALLS)} |" for name, of in rows.items()]


def _cell(statistics: Mapping[str, Mapping[str, float]], metric: str) -> str:
    return with_interval(statistics[metric], METRICS[metric].unit) if metric in statistics else NOTHING


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
            lines = table(suite, {name: ranked.get(name, {}) for name in pair})
            if not lines:
                continue
            print("\n".join([f"\n{suite.name}\n", *lines]))
            printed = True
    if not printed:
        raise ClaraError(f"{directory}: no two of these systems have ranked candidates of the same case")


if __name__ == "__main__":
    command.run(main)
