"""Measure how cost grows: compression with texts, a training step with candidates, a search with the store's size.

    python -m benchmarks.growth [--picture docs/images/growth.png] [--output FILE]

Each case is timed at sizes that double, in turns, and a power of the size is fitted to the medians: the slope of the
line in log-log axes. It is compared with the exponent of the work that cannot be avoided, fitted to the same sizes:
model FLOPs (`clara_jax.training.throughput`: attention has its quadratic term), and for the search the numbers of a
store. Time may grow slower, as fixed costs weigh less and less; where it grows faster by more than the tolerance, the
last line reports it and the exit code is 1. Texts and memories are random: their contents cost nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.accelerator import random_batch
from benchmarks.cores import OtherLoad, pin
from benchmarks.store import World, fill, questions
from clara_jax import command
from clara_jax.aot import workload
from clara_jax.aot.workload import full_batch, stage_shapes
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.inference.encode import encode_batch
from clara_jax.input_pipeline.batches import Sequences, StoredMemories, memory_at_end
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES
from clara_jax.model.precision import PRECISIONS
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import DEFAULT_ENCODING
from clara_jax.retrieval.exact_search import ExactSearch
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import DataConfig, OptimizerConfig, StageConfig, TopKConfig
from clara_jax.training.step import init_state, make_train_step
from clara_jax.training.throughput import Work, blocks_flops, step_flops, work

TOLERANCE = 0.1  # of an exponent
CLARA = ClaraConfig(doc_max_length=128, compress_rate=8)  # 16 memory tokens
LENGTH, ROWS = 112, 2  # of documents, without memory tokens, where they do not vary; and how many
ASKED, BEST = 10, 20  # questions of one measurement of the search, and chunks that each finds
COLOURS = ("#0072B2", "#E69F00")
SIZES = {
    "lengths": [64, 128, 256, 512, 1024],
    "batches": [1, 2, 4, 8, 16],
    "candidates": [5, 10, 20, 40],
    "chunks": [875, 1750, 3500, 7000, 14000],  # full blocks of the search, whose rows are powers of two
}


@dataclasses.dataclass(frozen=True)
class GrowthCase:
    """A case that is timed at several sizes.

    Attributes:
      panel: of the picture.
      name: of the line in it.
      axis: name of the sizes.
      sizes: growing.
      must: work at each that cannot be avoided, in any unit.
      calls: the function that is timed at each.
    """

    panel: str
    name: str
    axis: str
    sizes: Sequence[int]
    must: Sequence[float]
    calls: Sequence[Callable[[], Any]]


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the b of values ~ a · size^b that fits best, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def compressing(bundle: Bundle, panel: str, axis: str, sizes: Sequence[int], shape: Callable) -> GrowthCase:
    """Return the case of compressing random documents.

    Args:
      bundle: the model.
      panel: of the picture.
      axis: name of the sizes.
      sizes: growing.
      shape: size -> (documents, their tokens without memory tokens).
    """
    model, rng, must, calls = bundle.model, np.random.default_rng(0), [], []
    for size in sizes:
        rows, length = shape(size)
        ids = rng.integers(0, model.config.vocab_size, (rows, length + CLARA.memory_tokens)).astype(np.int32)
        ids[:, length:] = bundle.tokenizer.memory_ids
        mask = np.ones(ids.shape, np.int32)
        done = Work(*work(mask, model.config.sliding_window))
        must.append(blocks_flops(model.config, CLARA.lora_rank, done, False))
        texts = Sequences(ids, mask, memory_at_end(ids.shape, CLARA.memory_tokens))
        placed = put_batch(texts, bundle.mesh)
        calls.append(partial(encode_batch, model, "compressor", bundle.params, placed))
    return GrowthCase(panel, "compression", axis, sizes, must, calls)


def training(bundle: Bundle, sizes: Sequence[int], stored: bool) -> GrowthCase:
    """Return the case of a step of end_to_end, one question with so many candidates: compressed in it, or stored."""
    model, name, must, calls = bundle.model, "end_to_end", [], []
    memory = (CLARA.memory_tokens, model.config.embed_dim)
    for size in sizes:
        stage = StageConfig(
            name,
            DataConfig(("unread",)),
            OptimizerConfig(steps=1, batch_size=1),
            topk=TopKConfig(candidates=size, k=min(5, *sizes)),
        )
        shapes = stage_shapes(stage, CLARA)
        shapes = dataclasses.replace(shapes, encoder_width=LENGTH, query_width=32)
        shapes = dataclasses.replace(shapes, prompt_length=192, target_length=16)
        planned = workload.batch(1, shapes, CLARA.memory_tokens, True, bundle.mesh)
        batch, counted = random_batch(planned, model, stage), full_batch(planned)
        if stored:
            values = np.random.default_rng(0).normal(size=(1, size, *memory))
            memories = jnp.asarray(values, model.dtype)
            batch = dataclasses.replace(batch, documents=StoredMemories(memories))
            counted = dataclasses.replace(counted, documents=None)
        optimizer = make_optimizer(stage.optimizer, 1)
        trained, frozen = split(bundle.params, STAGES[name].trains)
        step = make_train_step(model, STAGES[name], stage.hyperparameters, optimizer)
        must.append(step_flops(model.config, CLARA.lora_rank, name, STAGES[name].trains, counted))
        calls.append(_RepeatedStep(step, init_state(trained, optimizer), frozen, put_batch(batch, bundle.mesh)))
    line = "memories stored" if stored else "candidates compressed"
    return GrowthCase("training step", line, "candidates", sizes, must, calls)


class _RepeatedStep:
    """A train step that keeps its state: each call starts from the state of the last one."""

    def __init__(self, step: Callable, state: Any, *rest: Any):
        self._step, self._state, self._rest = step, state, rest

    def __call__(self) -> Any:
        self._state, metrics = self._step(self._state, *self._rest, jax.random.key(0))
        return self._state, metrics


def searching(bundle: Bundle, sizes: Sequence[int], folder: Path) -> GrowthCase:
    """Return the case of the exact score of all chunks of stores, each of which lies in memory as for a server."""
    shape = CLARA.memory_tokens, bundle.model.config.embed_dim
    world, calls = World(*shape), []
    for size in sizes:
        store = DocumentStore.open_or_make(folder / str(size), "synthetic", DEFAULT_ENCODING, *shape)
        fill(store, world, size)
        asked, _ = questions(store, ASKED)
        search = ExactSearch(store, bundle.mesh, 2**62)
        calls.append(lambda search=search, asked=asked: [search(query[None], BEST) for query in asked])
    return GrowthCase("exact search", f"{ASKED} questions", "chunks", sizes, sizes, calls)


def measure(case: GrowthCase, repeats: int) -> list[list[float]]:
    """Return seconds, of each size those of every repeat, taken in turns after a first call that does not count."""
    seconds: list[list[float]] = [[] for _ in case.sizes]
    shown = tqdm(total=len(case.sizes) * (repeats + 1), desc=f"{case.panel}, {case.name}", leave=False)
    for turn in range(repeats + 1):
        for times, call in zip(seconds, case.calls, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times.append(time.perf_counter() - began)
            shown.update()
    shown.close()
    return seconds


def summary(case: GrowthCase, seconds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the row of a case, for the table and the picture."""
    medians = [statistics.median(times) for times in seconds]
    each = [exponent(case.sizes, turn) for turn in zip(*seconds, strict=True)]
    found, must = exponent(case.sizes, medians), exponent(case.sizes, case.must)
    return {
        "panel": case.panel,
        "case": case.name,
        "axis": case.axis,
        "sizes": list(case.sizes),
        "seconds": medians,
        "must": [float(value) for value in case.must],
        "exponent": found,
        "exponents of turns": [min(each), max(each)],
        "exponent of the work": must,
        "faster than it must": found > must + TOLERANCE,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return results in Markdown."""
    lines = ["| what | against | sizes | seconds | exponent (of single turns) | of the work |", "|" + " --- |" * 6]
    for result in results:
        low, high = result["exponents of turns"]
        ends = [f"{result[name][0]:,} to {result[name][-1]:,}" if name == "sizes" else f"{result[name][0]:.2g} to "
                f"{result[name][-1]:.2g}" for name in ("sizes", "seconds")]  # fmt: skip
        lines.append(
            f"| {result['panel']}, {result['case']} | {result['axis']} | {' | '.join(ends)} | "
            f"**{result['exponent']:.2f}** ({low:.2f} to {high:.2f}) | {result['exponent of the work']:.2f} |"
        )
    return "\n".join(lines)


def verdict(results: Sequence[dict[str, Any]]) -> str:
    """Return the line of the verdict."""
    faster = [result for result in results if result["faster than it must"]]
    worse = [f"{result['panel']} with {result['axis']}, {result['case']}" for result in faster]
    if worse:
        return f"grows faster than it must: {'; '.join(worse)}"
    return f"nothing grows faster than it must (an exponent above that of the work by at most {TOLERANCE})"


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw results in log-log axes, with the work that cannot be avoided, through the first point, as dashes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((result["panel"], result["axis"]) for result in results))
    figure = Figure(figsize=(3.4 * len(panels), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        members = [result for result in results if (result["panel"], result["axis"]) == panel][: len(COLOURS)]
        for colour, result in zip(COLOURS, members, strict=False):
            label = f"{result['case']}: {result['exponent']:.2f}"
            axes.loglog(result["sizes"], result["seconds"], "o-", color=colour, markersize=4, label=label)
            scaled = np.array(result["must"]) * result["seconds"][0] / result["must"][0]
            must = f"work: {result['exponent of the work']:.2f}"
            axes.loglog(result["sizes"], scaled, "--", color=colour, linewidth=1, alpha=0.7, label=must)
        axes.set_title(panel[0], fontweight="bold")
        axes.set_xlabel(panel[1])
        axes.set_xticks(members[-1]["sizes"], [f"{size:,}" for size in members[-1]["sizes"]])
        axes.minorticks_off()
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("seconds")
    with replaced_when_whole(path, "the picture cannot be written") as temporary:
        figure.savefig(temporary, format="png")


def cases(bundle: Bundle, arguments: argparse.Namespace, folder: Path) -> Iterator[GrowthCase]:
    """Yield the cases, each made when the one before it has been measured."""
    lengths, batches, candidates = arguments.lengths, arguments.batches, arguments.candidates
    yield compressing(bundle, "compression", "tokens of a document", lengths, lambda size: (ROWS, size))
    yield compressing(bundle, "compression", "documents", batches, lambda size: (size, LENGTH))
    yield training(bundle, candidates, False)
    yield training(bundle, candidates, True)
    yield searching(bundle, arguments.chunks, folder)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("growth", __doc__, package="benchmarks")
    add = parser.add_argument
    command.add_option(parser, "--base", "smollm2", default="smollm2")
    command.add_option(parser, "--precision", "float32", choices=PRECISIONS, default="float32")
    for name, text in (("lengths", "tokens of a document"), ("batches", "documents"), ("chunks", "of a store")):
        add(f"--{name}", type=int, nargs="+", default=SIZES[name], metavar="N", help=f"{text} ({_listed(name)})")
    command.add_option(parser, "--candidates", _listed("candidates"), nargs="+", default=SIZES["candidates"])
    command.add_option(parser, "--repeats", "3", default=3)
    add("--cores", metavar="N,N", help="cores to run on (default: all)")
    add("--picture", type=Path, metavar="FILE", help="draw this .png")
    command.add_option(parser, "--output", "all numbers, as JSON", type=Path)
    command.add_renamed_option(parser, "--json", "--output", type=Path)
    return parser


def _listed(name: str) -> str:
    return " ".join(map(str, SIZES[name]))


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    for name in SIZES:
        values = getattr(arguments, name)
        if len(values) < 2 or values[0] < 1 or values != sorted(set(values)):
            raise ClaraError(f"--{name}: two or more growing numbers are needed")
    if arguments.repeats < 1:
        raise ClaraError(f"--repeats is {arguments.repeats}; it must be at least 1")
    for path in filter(None, (arguments.picture, arguments.output)):
        if not path.parent.is_dir():
            raise ClaraError(f"{path}: there is no folder {path.parent}")
    cores = pin(arguments.cores)
    mesh, results = make_mesh(1, 1, devices=jax.devices()[:1]), []
    bundle = opening.from_base(arguments.base, CLARA, mesh, arguments.precision)
    busy = OtherLoad(cores)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(bundle, arguments, Path(folder)):
            with jax.set_mesh(mesh) if case.panel != "exact search" else contextlib.nullcontext():
                results.append(summary(case, measure(case, arguments.repeats)))
            jax.clear_caches()
    share = busy.share()
    print(
        f"{arguments.base}, {arguments.precision}, {len(cores)} cores of {jax.devices()[0].device_kind}, jax "
        f"{jax.__version__}; other work took {share:.0%} of their time\n\n{table(results)}\n\n{verdict(results)}"
    )
    if arguments.output:
        with replaced_when_whole(arguments.output) as temporary:
            temporary.write_text(json.dumps({"others": share, "results": results}, indent=1))
    if arguments.picture:
        draw(results, arguments.picture)
    if any(result["faster than it must"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
