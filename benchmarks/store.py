"""Measure a large store: bytes of a chunk, and the time of a question by exact score, search vectors and words.

    python -m benchmarks.store [--chunks 100000] [--memory-tokens 16] [--width 576] [--questions 50] [--folder DIR]
    python -m benchmarks.store --store stores/first

Memories are synthetic, so that a store of any size is made in minutes: points around a common mean, near a subspace of
128 directions whose shares fall as a power law. With ``--folder`` the store stays, and a second run measures it
without filling it again. ``--store`` measures a real one. A question is a chunk's memory, moved by a part of the
difference between two others. "first pass" is what a large store is searched by: search vectors, then the exact score
of the survivors; "search vectors alone" leaves the second step out.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.model.sharding import make_mesh
from clara_jax.retrieval import ann
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import ENCODINGS
from clara_jax.retrieval.search import Search
from clara_jax.text.documents import Chunk

DIRECTIONS, MEAN_SHARE, FALL, RESIDUAL, NOISE = 128, 0.7, 0.7, 0.2, 0.3
TOGETHER, CHUNKS_OF_A_DOCUMENT = 1000, 10
DEPTHS = (5, 20)


class World:
    """Synthetic memories, each a function of its number."""

    def __init__(self, memory_tokens: int, width: int):
        rng = np.random.default_rng(0)
        self.shape = memory_tokens, width
        self.mean = rng.normal(size=memory_tokens * width).astype(np.float32)
        scale = (1 + np.arange(DIRECTIONS)) ** -FALL
        scale *= np.sqrt((1 - MEAN_SHARE) / MEAN_SHARE / np.sum(scale**2))
        self.directions = (scale[:, None] * rng.normal(size=(DIRECTIONS, len(self.mean)))).astype(np.float32)

    def memories(self, start: int, count: int) -> np.ndarray:
        """Return the memories of ``count`` chunks from number ``start`` on, float32 [count, M, E]."""
        rng = np.random.default_rng((1, start))
        offsets = rng.normal(size=(count, DIRECTIONS)).astype(np.float32) @ self.directions
        offsets += RESIDUAL * rng.standard_normal((count, len(self.mean)), np.float32)
        return (self.mean + offsets).reshape(count, *self.shape)


def fill(store: DocumentStore, world: World, chunks: int) -> None:
    """Add synthetic chunks to a store until it holds so many."""
    with tqdm(total=chunks, initial=len(store), unit=" chunks", desc="filling") as bar:
        for start in range(len(store), chunks, TOGETHER):
            numbers = range(start, min(start + TOGETHER, chunks))
            rows = [_chunk(i) for i in numbers]
            keys = [i.to_bytes(16, "little") for i in numbers]
            store.replace(rows, keys, world.memories(start, len(rows)))
            bar.update(len(rows))


def questions(store: DocumentStore, count: int) -> tuple[np.ndarray, list[str]]:
    """Return memories [count, M, E] and texts of questions."""
    ids, rng = store.index()[0], np.random.default_rng(2)
    asked, one, other = ([ids[i] for i in rng.integers(0, len(ids), count)] for _ in range(3))
    moved = store.memories(one).astype(np.float32) - store.memories(other).astype(np.float32)
    texts = [" ".join(chunk.text.split()[:8]) for chunk in store.chunks(asked)]
    return store.memories(asked).astype(np.float32) + NOISE * moved, texts


def _chunk(number: int) -> Chunk:
    rng = np.random.default_rng((3, number))
    text = " ".join(f"word{i}" for i in (rng.pareto(1.0, 60) * 5).astype(int) % 20_000)
    document, part = divmod(number, CHUNKS_OF_A_DOCUMENT)
    return Chunk(f"d{document}#{part}", f"d{document}", "", text, "", -1, -1, 60)


def measure(name: str, ask: Callable[[int], list[str]], questions: int) -> list[list[str]]:
    """Time each question alone, after one that is not counted, and print a row."""
    began = time.perf_counter()
    ask(0)
    first = time.perf_counter() - began
    found, times = [], []
    for i in tqdm(range(questions), desc=name, leave=False):
        began = time.perf_counter()
        found.append(ask(i))
        times.append(time.perf_counter() - began)
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    print(f"| {name} | {first:.2f} s | {1000 * p50:.1f} ms | {1000 * p95:.1f} ms |", end="")
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("store", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--chunks", type=int, default=100_000, metavar="N", help="of a synthetic store (100000)")
    add("--memory-tokens", type=int, default=16, metavar="N", help="memories of its chunks (16)")
    add("--width", type=int, default=576, metavar="N", help="numbers of a memory (576)")
    add("--encoding", choices=ENCODINGS, default="float16", help="of its memories (float16)")
    add("--questions", type=int, default=50, metavar="N", help="measurements of each search (50)")
    add("--folder", type=Path, metavar="DIR", help="where it stays (default: in a temporary one)")
    command.add_renamed_option(parser, "--workdir", "--folder", type=Path)
    command.add_option(parser, "--store", "measure this one instead")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if min(arguments.chunks, arguments.memory_tokens, arguments.width) < 1 or arguments.questions < 2:
        raise ClaraError("--chunks, --memory-tokens, --width must be at least 1, --questions at least 2")
    with contextlib.ExitStack() as stack:
        place = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.store:
            store = DocumentStore.open(arguments.store)
        else:
            sizes = arguments.memory_tokens, arguments.width
            store = DocumentStore.open_or_make(place / "store", "synthetic", arguments.encoding, *sizes)
            fill(store, World(*sizes), arguments.chunks)
        for name, make in (
            ("words", lambda: store.tidy(now=True)),
            ("search vectors", lambda: ann.build(store)),
        ):
            if name == "words" or store.projection() is None:
                began = time.perf_counter()
                make()
                print(f"index of {name}: {time.perf_counter() - began:.0f} s", flush=True)
        stats = store.stats()
        print(
            f"\n{stats['chunks']:,} chunks of {stats['memory_tokens']} x {stats['width']} as {stats['encoding']}: "
            f"{stats['bytes'] / stats['chunks']:,.0f} bytes a chunk, {stats['memory_bytes']:,} of them its memory; "
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n"
        )
        queries, texts = questions(store, arguments.questions)
        search, k = Search(store, make_mesh(), 2**62), max(DEPTHS)
        print("| search | first | p50 | p95 | " + " | ".join(f"recall@{depth}" for depth in DEPTHS) + " |")
        print("| --- |" + " --- |" * (3 + len(DEPTHS)))
        exact = measure("exact", lambda i: _ids(search("", queries[i], k)), arguments.questions)
        print(" 1.000 |" * len(DEPTHS), flush=True)
        passed = measure("first pass", lambda i: _ids(search("", queries[i], k, ann=True)), arguments.questions)
        _recall(exact, passed)
        projection = ann.Projection.read(store)
        assert projection is not None  # made above
        vectors = projection.queries(queries)
        alone = measure("search vectors alone", lambda i: store.nearest(vectors[i], k), arguments.questions)
        _recall(exact, alone)
        measure("words", lambda i: _ids(search(texts[i], None, k, "words")), arguments.questions)
        print(" |" * len(DEPTHS))


def _recall(exact: list[list[str]], found: list[list[str]]) -> None:
    """End a row with the shares of the exact score's best that are among as many found."""
    for depth in DEPTHS:
        both = [len({*a[:depth]} & {*b[:depth]}) / depth for a, b in zip(exact, found, strict=True)]
        print(f" {statistics.fmean(both):.3f} |", end="")
    print(flush=True)


def _ids(found: list) -> list[str]:
    return [one.id for one in found]


if __name__ == "__main__":
    command.run(main)
