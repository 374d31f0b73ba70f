"""Compare the rankings of all estimators of the top-k, from one start with several seeds (configs/topk_study.py).

    python -m benchmarks.topk_study --workdir runs/topk_study [--seeds 0 1 2 3 4] [--methods iterative softsort ...]
    python -m benchmarks.topk_study --workdir runs/topk_study --report docs/topk_study.png

The first command trains; stopped at any moment, it goes on with the same command. A case is a method, or a method with
options of the configuration, e.g. "softsort:temperature=0.05,marginal=0.1". The second draws the learning curves and
prints the table of what is finished: means over seeds of the last evaluation, with 95% intervals from a bootstrap over
the seeds, and each case's difference to the first one with the same seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.formats.json_file import read_object
from clara_jax.method.estimators.methods import METHODS
from clara_jax.training.metrics import read_metrics
from clara_jax.training.resume import RUN

CONFIG = "configs/topk_study.py"
MEASURED = {"recall@1": "Recall@1", "recall@3": "Recall@3", "recall@5": "Recall@5", "f1": "answer F1"}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
RESAMPLES = 10_000
Curves = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # case -> seed -> evaluations, in order


def train(workdir: Path, arguments: str) -> None:
    """Make a run of the study, unless it is finished; in a separate process, so that runs share no memory."""
    if finished(workdir):
        return
    ran = subprocess.run(
        [sys.executable, "-m", "clara_jax.train", "--config", f"{CONFIG}:{arguments}", "--workdir", str(workdir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        raise ClaraError(f"{workdir}: {ran.stderr.strip().splitlines()[-1]}")


def finished(workdir: Path) -> bool:
    """Return whether a run is finished."""
    path = workdir / RUN
    return path.exists() and "finished" in read_object(path, f"delete {workdir} and give the command again")


def place(workdir: Path, case: str, seed: int) -> Path:
    """Return the run directory of a case and a seed."""
    return workdir / f"{case.replace(':', '-').replace(',', '-')}-{seed}"


def curves(workdir: Path, cases: Sequence[str], seeds: Sequence[int]) -> Curves:
    """Return the evaluations of every finished run."""
    found: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for case in cases:
        for seed in seeds:
            run = place(workdir, case, seed)
            if finished(run):
                rows = read_metrics(run / "metrics.jsonl")
                found.setdefault(case, {})[seed] = [row for row in rows if "eval_recall@1" in row]
    if not found:
        raise ClaraError(f"{workdir}: holds no finished run; give the command without --report first")
    return found


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95% interval, percentiles of means of ``RESAMPLES`` samples with replacement."""
    values = np.asarray(values)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = (float(x) for x in np.percentile(drawn, (2.5, 97.5)))
    return float(values.mean()), low, high


def table(found: Curves) -> str:
    """Return the table of the last evaluations in Markdown."""
    first = next(iter(found))
    head = [f"{label}, mean [95%]" for label in MEASURED.values()] + [
        f"{label} against {first}" for label in MEASURED.values()
    ]
    lines = [f"| case | seeds | {' | '.join(head)} |", "| --- |" + " --- |" * (len(head) + 1)]
    for case, runs in found.items():
        cells = []
        for name in MEASURED:
            mean, low, high = interval([rows[-1][f"eval_{name}"] for rows in runs.values()])
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        for name in MEASURED:
            shared = [seed for seed in runs if seed in found[first]]
            ends, first_ends = ([each[seed][-1][f"eval_{name}"] for seed in shared] for each in (runs, found[first]))
            mean, low, high = interval(np.subtract(ends, first_ends)) if shared else (np.nan,) * 3
            cells.append("" if case == first else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {case} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Curves, path: Path) -> None:
    """Draw Recall@k and F1 over the steps: the mean over seeds, and the range of all seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(MEASURED), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURED))
    for axes, (name, label) in zip(panels, MEASURED.items(), strict=True):
        for number, (case, runs) in enumerate(found.items()):
            steps = [row["step"] for row in next(iter(runs.values()))]
            values = np.array([[row[f"eval_{name}"] for row in rows] for rows in runs.values()])
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(steps, values.mean(axis=0), color=colour, label=case)
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        axes.set_title(label)
        axes.set_xlabel("step")
    panels[-1].legend(fontsize="small")
    with replaced_when_whole(path, "the picture cannot be written") as temporary:
        figure.savefig(temporary, format="png")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("topk_study", __doc__, package="benchmarks")
    add = parser.add_argument
    command.add_option(parser, "--workdir", "one run in it for each case and seed", type=Path, required=True)
    add("--methods", nargs="+", default=list(METHODS), metavar="CASE", help="methods, with options or without (all)")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=list(range(5)),
        metavar="N",
        help="each case with each of them (0 1 2 3 4)",
    )
    add("--report", type=Path, metavar="PNG", help="train nothing: draw and print what is there")
    return parser


def main() -> None:
    """Run the study, or report it."""
    arguments = parser().parse_args()
    if arguments.report:
        found = curves(arguments.workdir, arguments.methods, arguments.seeds)
        draw(found, arguments.report)
        print(table(found))
        return
    start = arguments.workdir / "start"
    train(start, "part=start")
    cases = [(seed, case) for seed in arguments.seeds for case in arguments.methods]
    for seed, case in tqdm(cases, desc="runs"):
        method, _, options = case.partition(":")
        chosen = f"part=rank,start={start},seed={seed},method={method}" + (f",{options}" if options else "")
        train(place(arguments.workdir, case, seed), chosen)


if __name__ == "__main__":
    command.run(main)
