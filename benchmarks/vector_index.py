"""Measure indexes of search vectors: recall, time of a question, bytes and time to build, at millions of chunks.

    python -m benchmarks.vector_index --folder DIR --vectors 10000000

The vectors are synthetic, 256 numbers each as a store's (`clara_jax.retrieval.ann`): points in as many directions,
whose shares fall as a power law. A question is a vector, moved by a part of the difference of two others. Recall is
that of the best inner products of all vectors, which are computed. "rescored": the index gives 20 survivors for each
place, and their exact scores decide; their memories are read as a store reads them, from a small table whose rows are
used again and again, so that the time is a large store's, and the recall is that of the exact inner products of the
survivors. With ``--folder`` the table stays, and a second run goes on with the indexes that are missing in its
``results.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import read_object
from clara_jax.retrieval.lance import IvfSq, lancedb
from clara_jax.retrieval.rows import VECTOR_WIDTH
from clara_jax.retrieval.search import SURVIVORS

FALL, RESIDUAL, NOISE = 0.5, 0.05, 0.3
TOGETHER = 65_536  # vectors of a write and of a product
MEMORIES = 2_048  # rows of the table that memories are read from
DEPTHS = (5, 20)
K = max(DEPTHS)
INDEXES = ("ivf_sq", "ivf_pq", "ivf_rq")


def _config(name: str) -> Any:
    """Return LanceDB's description of an index."""
    if name == "ivf_sq":
        return IvfSq(distance_type="dot")
    from lancedb.index import IvfPq, IvfRq

    # Equal bytes: 32 a vector of either, where IVF_SQ has 256.
    return IvfPq(distance_type="dot", num_sub_vectors=VECTOR_WIDTH // 8) if name == "ivf_pq" else IvfRq("dot")


def vectors(start: int, count: int) -> np.ndarray:
    """Return the search vectors of ``count`` chunks from number ``start`` on, float32 [count, 256]."""
    rng = np.random.default_rng((5, start))
    scale = (1 + np.arange(VECTOR_WIDTH, dtype=np.float32)) ** -FALL
    scale /= np.sqrt(np.sum(scale**2))
    return rng.standard_normal((count, VECTOR_WIDTH), np.float32) * (scale + RESIDUAL / VECTOR_WIDTH**0.5)


def _blocks(count: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, count, TOGETHER):
        yield start, vectors(start, min(TOGETHER, count - start))


def _schema() -> pa.Schema:
    return pa.schema([("number", pa.int64()), ("vector", pa.list_(pa.float32(), VECTOR_WIDTH))])


def fill(database: Any, count: int) -> Any:
    """Return the table of vectors, after adding those that it lacks."""
    table = database.create_table("vectors", schema=_schema(), exist_ok=True)
    have = table.count_rows()
    if have > count or (have % TOGETHER and have != count):
        raise ClaraError(f"--folder: it holds {have:,} vectors; name another one, or --vectors {have}")
    with tqdm(total=count, initial=have, unit=" vectors", desc="filling") as bar:
        for start in range(have, count, TOGETHER):
            block = vectors(start, min(TOGETHER, count - start))
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), VECTOR_WIDTH)
            table.add(pa.table([pa.array(np.arange(start, start + len(block))), values], schema=_schema()))
            bar.update(len(block))
    return table


def memories(database: Any, size: int) -> Any:
    """Return the small table from which memories of ``size`` bytes are read."""
    if "memories" in database.list_tables().tables:
        return database.open_table("memories")
    rng = np.random.default_rng(6)
    rows = [rng.bytes(size) for _ in range(MEMORIES)]
    schema = pa.schema([("number", pa.int64()), ("memory", pa.binary(size))])
    table = pa.table([pa.array(range(MEMORIES)), pa.array(rows, pa.binary(size))], schema=schema)
    return database.create_table("memories", table)


def questions(count: int, total: int) -> np.ndarray:
    """Return float32 [count, 256]."""
    rng = np.random.default_rng(7)
    first = vectors(0, min(TOGETHER, total))
    one, other, third = (first[rng.integers(0, len(first), count)] for _ in range(3))
    return one + NOISE * (other - third)


def best(queries: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of the best inner products of all vectors, int64 [questions, K], best first."""
    numbers = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start, block in tqdm(_blocks(count), total=-(-count // TOGETHER), desc="exact", leave=False):
        found = queries @ block.T
        top = np.argpartition(found, -min(K, len(block)), axis=1)[:, -min(K, len(block)) :]
        numbers = np.concatenate([numbers, top + start], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(found, top, axis=1)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        numbers, scores = np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return numbers


def measure(ask: Callable[[int], np.ndarray], wanted: np.ndarray) -> dict[str, float]:
    """Time each question alone, after one that is not counted, and compare what is found with what is wanted."""
    ask(0)
    times, found = [], []
    for i in range(len(wanted)):
        began = time.perf_counter()
        found.append(ask(i))
        times.append(1000 * (time.perf_counter() - began))
    row = {f"p{share}": float(np.percentile(times, share)) for share in (50, 95)}
    for depth in DEPTHS:
        shares = [np.isin(a[:depth], b[:depth]).mean() for a, b in zip(wanted, found, strict=True)]
        row[f"recall@{depth}"] = float(np.mean(shares))
    return row


def measure_index(
    table: Any, stored: Any, queries: np.ndarray, wanted: np.ndarray, probes: list[int]
) -> list[dict[str, Any]]:
    """Return a row for each number of probed partitions, without and with the exact scores of the survivors."""

    def nearest(i: int, count: int, probed: int, columns: list[str]) -> pa.Table:
        search = table.search(queries[i], vector_column_name="vector").distance_type("dot")
        return search.nprobes(probed).limit(count).select([*columns, "_distance"]).to_arrow()

    def alone(i: int, probed: int) -> np.ndarray:
        return nearest(i, K, probed, ["number"])["number"].to_numpy()

    def rescored(i: int, probed: int) -> np.ndarray:
        found = nearest(i, SURVIVORS * K, probed, ["number", "vector"])
        numbers = found["number"].to_numpy()
        rows = ", ".join(str(number) for number in sorted({int(number) % MEMORIES for number in numbers}))
        stored.search().where(f"number IN ({rows})").select(["number", "memory"]).to_arrow()
        exact = found["vector"].combine_chunks().flatten().to_numpy().reshape(len(numbers), -1) @ queries[i]
        return numbers[np.argsort(-exact, kind="stable")[:K]]

    rows = []
    for probed in probes:
        for name, ask in (("index alone", alone), ("rescored", rescored)):
            row = measure(lambda i, ask=ask, probed=probed: ask(i, probed), wanted)
            rows.append({"search": name, "probes": probed, **row})
    return rows


def _print(name: str, row: dict[str, Any], about: dict[str, Any]) -> None:
    recalls = " | ".join(f"{row[f'recall@{depth}']:.3f}" for depth in DEPTHS)
    size, built = about["bytes"] / 2**20, about["seconds"]
    print(
        f"| {name} | {row['search']} | {row['probes']} | {recalls} | {row['p50']:.1f} | {row['p95']:.1f} | "
        f"{size:,.0f} | {built:,.0f} |",
        flush=True,
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("vector_index", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--vectors", type=int, default=1_000_000, metavar="N", help="in the table (1000000); 1 KiB each")
    add("--questions", type=int, default=100, metavar="N", help="of each measurement (100)")
    add("--index", nargs="+", choices=INDEXES, default=list(INDEXES), help="those that are measured")
    add("--probes", nargs="+", type=int, default=[20, 100], metavar="N", help="partitions that are searched (20, 100)")
    add("--memory-bytes", type=int, default=9_280, metavar="N", help="of a chunk, read for its score (16 x 576, int8)")
    add("--folder", type=Path, metavar="DIR", help="where the table stays (default: in a temporary one)")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    numbers = [arguments.vectors, arguments.questions, arguments.memory_bytes, *arguments.probes]
    if min(numbers) < 1 or arguments.vectors < K:
        raise ClaraError(f"--vectors must be at least {K}, the other numbers at least 1")
    with contextlib.ExitStack() as stack:
        place = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = lancedb.connect(place / "vectors")
        table = fill(database, arguments.vectors)
        table.optimize()
        stored = memories(database, arguments.memory_bytes)
        path = place / "results.json"
        asked = {"vectors": arguments.vectors, "questions": arguments.questions, "probes": arguments.probes}
        results = read_object(path, "name another --folder") if path.exists() else {"asked": asked, "indexes": {}}
        if results["asked"] != asked:
            raise ClaraError(f"{path}: was made with {results['asked']}; name another --folder")
        queries = questions(arguments.questions, arguments.vectors)
        wanted = best(queries, arguments.vectors)
        head = ["index", "search", "probes", *(f"recall@{depth}" for depth in DEPTHS), "p50, ms", "p95, ms"]
        head += ["MiB", "built, s"]
        print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
        for name in arguments.index:
            if name not in results["indexes"]:
                for index in table.list_indices():
                    table.drop_index(index.name)
                table.optimize()
                before, began = _bytes(place / "vectors"), time.perf_counter()
                table.create_index("vector", config=_config(name))
                about = {"seconds": time.perf_counter() - began, "bytes": _bytes(place / "vectors") - before}
                rows = measure_index(table, stored, queries, wanted, arguments.probes)
                results["indexes"][name] = {**about, "rows": rows}
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            for row in results["indexes"][name]["rows"]:
                _print(name, row, results["indexes"][name])


if __name__ == "__main__":
    command.run(main)
