"""Prints the loss curves of a run as tables: one line for every few steps, held-out losses before and after.

python -m benchmarks.loss_table runs/smollm2 [--every 6]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from clara_jax import command
from clara_jax.training.metrics import read_metrics

TERMS = ("loss", "ce", "mse", "contrastive", "recall", "accuracy", "grad_norm")


def table(rows: list[dict], every: int) -> list[str]:
    """Markdown lines: the mean of each term over ``every`` steps."""
    terms = [name for name in TERMS if name in rows[0]]
    lines = ["| steps | " + " | ".join(terms) + " |", "|---" * (len(terms) + 1) + "|"]
    for start in range(0, len(rows), every):
        part = rows[start : start + every]
        means = " | ".join(f"{np.mean([row[name] for row in part]):.4f}" for name in terms)
        lines.append(f"| {part[0]['step']}-{part[-1]['step']} | {means} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory")
    parser.add_argument("--every", type=int, default=6, help="steps a line stands for")
    arguments = parser.parse_args()
    rows = read_metrics(Path(arguments.run) / "metrics.jsonl")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        steps, ends = [row for row in own if "loss" in row], [row for row in own if row.get("finished")]
        print(f"### {stage}", *table(steps, arguments.every), sep="\n")
        for end in ends:
            held_out = {
                name.removeprefix("held_out_"): pair for name, pair in end.items() if name.startswith("held_out")
            }
            changes = ", ".join(f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in held_out.items())
            print(f"\nHeld out: {changes}. {end['steps']} steps in {end['seconds']:.0f} s.\n")


if __name__ == "__main__":
    command.run(main)
