"""Print the loss curves of a run as tables: one line for every few steps, held-out values before and after.

python -m benchmarks.loss_table runs/smollm2 [--every 6]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from clara_jax import command
from clara_jax.training.metrics import read_metrics

CASES = {"": "held out", "_no_memory": "no memory", "_other_memory": "another document's memory"}
TERMS = ("loss", "ce", "mse", "contrastive", "recall", "accuracy", "grad_norm")


def table(rows: list[dict], every: int) -> list[str]:
    """Return Markdown lines: the mean of each term over ``every`` steps."""
    terms = [name for name in TERMS if name in rows[0]]
    lines = ["| steps | " + " | ".join(terms) + " |", "|---" * (len(terms) + 1) + "|"]
    for start in range(0, len(rows), every):
        part = rows[start : start + every]
        means = " | ".join(f"{np.mean([row[name] for row in part]):.4f}" for name in terms)
        lines.append(f"| {part[0]['step']}-{part[-1]['step']} | {means} |")
    return lines


def held_out(end: dict) -> list[str]:
    """Return Markdown lines: held-out values before the first step and after the last, each with its controls."""
    pairs = {name.removeprefix("held_out_"): pair for name, pair in end.items() if name.startswith("held_out_")}
    controls = tuple(case for case in CASES if case)
    names = [name for name in pairs if not name.endswith(controls)]
    cases = [case for case in CASES if any(f"{name}{case}" in pairs for name in names)]
    lines = ["| | " + " | ".join(CASES[case] for case in cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for name in names:
        cells = ["{:.4f} -> {:.4f}".format(*pairs[name + case]) if name + case in pairs else "" for case in cases]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("loss_table", __doc__, package="benchmarks")
    parser.add_argument("run", metavar="DIR", help="the run directory")
    parser.add_argument("--every", type=int, default=6, metavar="N", help="steps that a line stands for (6)")
    return parser


def main() -> None:
    """Print the tables of a run."""
    arguments = parser().parse_args()
    rows = read_metrics(Path(arguments.run) / "metrics.jsonl")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage]
        steps, ends = [row for row in of_stage if "loss" in row], [row for row in of_stage if row.get("finished")]
        print(f"### {stage}", *table(steps, arguments.every), sep="\n")
        for end in ends:
            print("", *held_out(end), f"\n{end['steps']} steps in {end['seconds']:.0f} s.\n", sep="\n")


if __name__ == "__main__":
    command.run(main)
