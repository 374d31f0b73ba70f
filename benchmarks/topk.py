"""Measure the cost of the estimators of the top-k, and draw their weights and gradients.

    python -m benchmarks.topk [--candidates 20 100 1000 100000] [--rows 8] [--k 5] [--repeats 15]
    python -m benchmarks.topk --picture docs/topk.png

Times are taken in turns in one run, forward and with the backward pass; a ratio is that of the medians to "iterative",
the paper's. Memory is what the compiled function needs beside its arguments and results, per row and candidate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.method.estimators.methods import METHODS, select

BASELINE, TEMPERATURE = "iterative", 0.05
PICTURED, OTHERS, RANKS = (0.02, 0.1, 0.3), (0.2, 0.0, -0.2), 2
COLOURS = ("#0072B2", "#E69F00", "#009E73")


def forward(method: str, k: int, scores: jax.Array, cotangent: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the estimator's weights times the cotangent, summed for each row."""
    weights, _ = select(scores, k, method, TEMPERATURE, key=keys)
    return jnp.sum(weights * cotangent, axis=(1, 2))


def backward(method: str, k: int, scores: jax.Array, cotangent: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the gradient of `forward` with respect to the scores."""
    return jax.grad(lambda s: jnp.sum(forward(method, k, s, cotangent, keys)))(scores)


def measure(candidates: int, rows: int, k: int, repeats: int) -> None:
    """Measure all estimators in turns, and print their rows of the table."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(0, 0.2, (rows, candidates)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(rows, min(k, candidates), candidates)), jnp.float32)
    arguments = scores, cotangent, jax.random.split(jax.random.key(0), rows)
    compiled: dict[tuple[str, Callable], jax.stages.Compiled] = {}
    for method in tqdm(METHODS, desc=f"D = {candidates:,}: compiling", leave=False):
        for function in (forward, backward):
            program = jax.jit(partial(function, method, k)).lower(*arguments).compile()
            program(*arguments).block_until_ready()
            compiled[method, function] = program
    times: dict[tuple[str, Callable], list[float]] = {case: [] for case in compiled}
    for _ in tqdm(range(repeats), desc=f"D = {candidates:,}: measuring", leave=False):
        for case, program in compiled.items():
            began = time.perf_counter()
            program(*arguments).block_until_ready()
            times[case].append(time.perf_counter() - began)
    for method in METHODS:
        cells = []
        for function in (forward, backward):
            ratio = statistics.median(times[method, function]) / statistics.median(times[BASELINE, function])
            analysis = compiled[method, function].memory_analysis()
            assert analysis is not None  # CPUs, GPUs and TPUs have one
            memory = analysis.temp_size_in_bytes / (rows * candidates)
            cells += [f"{ratio:.2f}", f"{memory:,.0f}"]
        print(f"| {candidates:,} | {method} | {' | '.join(cells)} |", flush=True)


def _chosen(method: str, temperature: float, scores: jax.Array, hard: bool = False) -> jax.Array:
    """Return the first document's weight among all ranks, float32 [B]."""
    return jnp.sum(select(scores, RANKS, method, temperature, hard=hard)[0][:, :, 0], axis=1)


def draw(path: Path) -> None:
    """Draw one document's weight among the chosen as its score moves past those of three others.

    There are the hard and the soft weight, and the gradient with respect to the document's score.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gaps = np.linspace(-0.5, 0.5, 501, dtype=np.float32)
    scores = jnp.stack([jnp.asarray(gaps), *(jnp.full(gaps.shape, other) for other in OTHERS)], axis=1)
    figure = Figure(figsize=(2.6 * len(METHODS), 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(METHODS), sharex=True, sharey="row")
    for column, method in enumerate(METHODS):
        top, bottom = grid[:, column]
        top.set_title(method, fontweight="bold")
        for colour, temperature in zip(COLOURS, PICTURED, strict=True):
            chosen = partial(_chosen, method, temperature)
            top.plot(gaps, chosen(scores), color=colour, label=f"τ = {temperature}")
            slope = jax.grad(lambda s, chosen=chosen: jnp.sum(chosen(s, hard=True)))(scores)[:, 0]
            bottom.plot(gaps, slope, color=colour)
        hard = _chosen(method, PICTURED[-1], scores, hard=True)
        top.plot(gaps, hard, color="black", linewidth=0.8, linestyle=":", label="forward")
        for axes in (top, bottom):
            for other in OTHERS:
                axes.axvline(other, color="0.85", linewidth=0.8, zorder=0)
        bottom.set_xlabel("score")
    grid[1, 0].set_yscale("symlog", linthresh=1.0)
    grid[0, 0].set_ylabel(f"weight among the {RANKS} ranks")
    grid[1, 0].set_ylabel("gradient of that")
    grid[0, 0].legend(fontsize="small")
    with replaced_when_whole(path, "the picture cannot be written") as temporary:
        figure.savefig(temporary, format="png")
    print(f"{path}: others at {', '.join(map(str, OTHERS))}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("topk", __doc__, package="benchmarks")
    option = command.add_option
    option(parser, "--candidates", "D; 20 100 1000 100000", nargs="+", default=[20, 100, 1000, 100_000])
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="B (8)")
    option(parser, "--k", "K; 5", default=5)
    option(parser, "--repeats", "15", default=15)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw this .png instead")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if arguments.picture:
        return draw(arguments.picture)
    if min(*arguments.candidates, arguments.rows, arguments.k, arguments.repeats) < 1:
        raise ClaraError("--candidates, --rows, --k, --repeats: all must be at least 1")
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}: {arguments.rows} rows, k {arguments.k}, τ {TEMPERATURE}\n")
    print("| D | method | forward | bytes | forward and backward | bytes |\n| --- | --- | --- | --- | --- | --- |")
    for candidates in arguments.candidates:
        measure(candidates, arguments.rows, arguments.k, arguments.repeats)


if __name__ == "__main__":
    command.run(main)
