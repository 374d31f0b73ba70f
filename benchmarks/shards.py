"""Measure how shards of a corpus add up: chunks a second of several workers, and what kills do to them.

    python -m benchmarks.shards [--chunks 4800] [--workers 4] [--milliseconds 40] [--repeats 3]
    python -m benchmarks.shards --kills 20 --chunks 2400 --milliseconds 20

The compressor is a null one with a fixed service time: it sleeps, then gives memories that are a function of the text.
So it stands for one on an accelerator for each worker, and a machine with few cores suffices for many. All else is
the real thing: workers are processes that plan, encode and write parts of a store as
``python -m clara_jax.compress --shard`` does, one commit publishes them, and at the end every row is compared with what
it should be.

With ``--kills``, workers are killed (SIGKILL) at random moments of their work and started again, and then the process
that publishes is.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import numpy as np

from clara_jax import command, distributed
from clara_jax.errors import ClaraError
from clara_jax.retrieval import indexing
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import ChunkedDocument
from clara_jax.retrieval.indexing import stage
from clara_jax.retrieval.publishing import publish
from clara_jax.retrieval.shards import Shard
from clara_jax.retrieval.staging import Files, Staging, shard_counts
from clara_jax.text.documents import Chunk

M, E = 16, 64
CHUNKS_OF_A_DOCUMENT = 3
BATCH = 32
WORK_SECONDS, PUBLISH_SECONDS = 4.0, 0.5  # within which a process is killed
SAVE_SECONDS = 2.0  # of work between the parts of workers that are killed; at most about as much is lost


def corpus(chunks: int) -> Iterator[ChunkedDocument]:
    """Yield documents of synthetic chunks, so many chunks together."""
    for start in range(0, chunks, CHUNKS_OF_A_DOCUMENT):
        name = f"d{start // CHUNKS_OF_A_DOCUMENT}"
        numbers = range(start, min(start + CHUNKS_OF_A_DOCUMENT, chunks))
        rows = (Chunk(f"{name}#{i - start}", name, "", f"word{i} is here", "", -1, -1, 3) for i in numbers)
        yield ChunkedDocument(name, tuple(rows))


def _tokens(texts: Sequence[str]) -> list[list[int]]:
    return [[int(text.split()[0].removeprefix("word"))] for text in texts]


def memory(tokens: Sequence[int]) -> np.ndarray:
    """Return the memory of a chunk, float32 [M, E]: exact as float16."""
    return np.full((M, E), tokens[0] % 1000, np.float32) + (np.arange(E, dtype=np.float32) % 2)


def work(
    location: str,
    shard: Shard,
    chunks: int,
    milliseconds: float,
    folder: str,
    seconds: float | None,
    barrier: Any = None,
) -> None:
    """Compress a shard, as one worker.

    Args:
      location: of the store.
      shard: of the corpus.
      chunks: of the whole corpus.
      milliseconds: of compressing a chunk.
      folder: where a file of the worker gets a line for each batch that was compressed: the number of its chunks.
      seconds: of work between parts; None for the usual.
      barrier: is passed before the work begins, and when it is done.
    """
    log = Path(folder, f"log-{shard.index}")

    def encode(model: Any, params: Any, role: str, texts: Sequence[np.ndarray], *rest: Any) -> Iterator[tuple]:
        for start in range(0, len(texts), BATCH):
            places = list(range(start, min(start + BATCH, len(texts))))
            time.sleep(len(places) * milliseconds / 1000)
            with open(log, "a") as file:
                file.write(f"{len(places)}\n")
            yield places, np.stack([memory(texts[i].tolist()) for i in places])

    indexing.encode_texts = encode  # the one place where the model is called
    if seconds is not None:
        indexing.SAVE_SECONDS = seconds
    tokenizer = SimpleNamespace(encode_documents=_tokens)
    bundle: Any = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(dtype=np.float32), params=None, mesh=None)
    store = make(location)
    documents = (document for document in corpus(chunks) if shard.holds(document.id))
    Staging(store, shard)  # imports what it needs
    distributed.is_main()  # and this asks for the devices
    with open(log, "a") as file:
        file.write("0\n")
    if barrier is not None:
        barrier.wait()
    stage(store, shard, bundle, documents, BATCH)
    if barrier is not None:
        barrier.wait()


def make(location: str) -> DocumentStore:
    """Open the store, or make it."""
    return DocumentStore.open_or_make(location, "null", "float16", M, E)


def published(location: str, killed_after: float | None = None) -> None:
    """Publish what all workers have compressed; the process may be killed so many seconds later."""
    store = DocumentStore.open(location)
    if killed_after is not None:
        timer = threading.Timer(killed_after, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    publish(store)


def check(location: str, chunks: int) -> None:
    """Check that a store holds every chunk once, with its memory, and that nothing else is in its folder.

    Raises:
      ClaraError: something is lost, doubled, wrong or left behind.
    """
    expected = {chunk.id: chunk for document in corpus(chunks) for chunk in document.chunks}
    store = DocumentStore.open(location)
    ids = store.index()[0]
    if sorted(ids) != sorted(expected):
        raise ClaraError(f"{location}: {len(ids):,} chunks, {len(set(ids)):,} different ones, and not {chunks:,}")
    for start in range(0, chunks, 1000):
        some = ids[start : start + 1000]
        wanted = np.stack([memory(_tokens([expected[name].text])[0]) for name in some])
        if store.chunks(some) != [expected[name] for name in some] or (store.memories(some) != wanted).any():
            raise ClaraError(f"{location}: a chunk or its memory is not what was written")
    known = {file.path for one in lance.dataset(store.table_url).get_fragments() for file in one.data_files()}
    left = set(Files(store, "data", table=True).names()) - known
    if shard_counts(store) or (left and not store.remote):  # in a bucket, they go when they are a week old
        raise ClaraError(f"{location}: {len(left)} files are left behind")


class Workers:
    """Processes that compress the shards of a corpus into a store."""

    def __init__(
        self,
        folder: Path,
        count: int,
        chunks: int,
        milliseconds: float,
        seconds: float | None = None,
        location: str | None = None,
    ):
        self.location, self._folder, self._count = location or str(folder / "store"), folder, count
        self._context = multiprocessing.get_context("spawn")
        self._given = chunks, milliseconds, str(folder), seconds
        make(self.location)

    def start(self, index: int, barrier: Any = None) -> Any:
        """Start the worker of a shard."""
        return self.run(functools.partial(work, self.location, Shard(index, self._count), *self._given, barrier))

    def run(self, function: Callable[[], None]) -> Any:
        """Start a process."""
        process = self._context.Process(target=function, daemon=True)
        process.start()
        return process

    def batches(self, index: int) -> list[int]:
        """Return the numbers of chunks of the batches that a worker has compressed, 0 for each time it has begun."""
        log = self._folder / f"log-{index}"
        return list(map(int, log.read_text().split())) if log.exists() else []

    def compressed(self) -> int:
        """Return how many chunks were compressed, by all workers together."""
        return sum(sum(self.batches(index)) for index in range(self._count))

    def rate(self) -> float:
        """Run all workers to their end, and return their chunks a second, without the start of the processes."""
        barrier = self._context.Barrier(self._count + 1)
        processes = [self.start(index, barrier) for index in range(self._count)]
        barrier.wait()
        began = time.monotonic()
        barrier.wait()
        seconds = time.monotonic() - began
        for process in processes:
            _finish(process)
        return self.compressed() / seconds

    def kill_workers(self, kills: int, rng: random.Random) -> None:
        """Run all workers to their end, and kill them, so often together, at random moments of their work."""
        running, done = {index: self.start(index) for index in range(self._count)}, 0
        begun = dict.fromkeys(running, 1)
        while done < kills:
            index = rng.choice(sorted(running))
            while self.batches(index).count(0) < begun[index]:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, WORK_SECONDS))
            if running[index].exitcode is None:
                running[index].kill()
                done += 1
            running[index].join()
            # One that has finished goes through its shard again, where it finds all of its parts.
            running[index] = self.start(index)
            begun[index] += 1
        for process in running.values():
            _finish(process)

    def kill_publishing(self, most: int, rng: random.Random) -> int:
        """Publish, in processes that are killed at random moments and a last one that is not; return how many were."""
        kills = 0
        while shard_counts(DocumentStore.open(self.location)):
            after = rng.uniform(0, PUBLISH_SECONDS) if kills < most else None
            process = self.run(functools.partial(published, self.location, after))
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        return kills


def _finish(process: Any) -> None:
    process.join()
    if process.exitcode:
        raise ClaraError(f"a process of the benchmark has ended with {process.exitcode}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("shards", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--chunks", type=int, default=4800, metavar="N", help="of the corpus (4800)")
    add("--workers", type=int, default=4, metavar="N", help="compared with one (4)")
    add("--milliseconds", type=float, default=40.0, metavar="T", help="of compressing a chunk (40)")
    add("--kills", type=int, metavar="N", help="kill workers so often instead, and check what is published")
    command.add_option(parser, "--repeats", "3", default=3)
    command.add_option(parser, "--seed")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if min(arguments.chunks, arguments.workers, arguments.repeats) < 1 or arguments.milliseconds <= 0:
        raise ClaraError("--chunks, --workers, --repeats and --milliseconds must be positive")
    given = arguments.chunks, arguments.milliseconds
    with tempfile.TemporaryDirectory() as folder:
        if arguments.kills:
            _kills(Path(folder), arguments)
            return
        rates: dict[int, list[float]] = {1: [], arguments.workers: []}
        commits = set()
        print("| run | workers | chunks/s | publish |\n| --- | --- | --- | --- |", flush=True)
        for run in range(arguments.repeats):
            for count in rates:
                workers = Workers(_fresh(folder, f"{run}-{count}"), count, *given)
                before = DocumentStore.open(workers.location).version
                rates[count].append(workers.rate())
                if DocumentStore.open(workers.location).version != before:
                    raise ClaraError("a worker has changed the table")
                began = time.monotonic()
                published(workers.location)
                seconds = time.monotonic() - began
                commits.add(_commits_of_rows(workers.location, before))
                check(workers.location, arguments.chunks)
                print(f"| {run + 1} | {count} | {rates[count][-1]:.1f} | {seconds:.2f} s |", flush=True)
    one, many = statistics.median(rates[1]), statistics.median(rates[arguments.workers])
    print(
        f"\n{arguments.workers} workers: {many / one:.2f} × one worker's chunks a second (medians of "
        f"{arguments.repeats}); commits of rows: {', '.join(map(str, commits))}; {arguments.chunks:,} chunks, each once"
    )


def _commits_of_rows(location: str, before: int) -> int:
    """Return how many versions after one have other numbers of rows than the one before them."""
    url = DocumentStore.open(location).table_url
    counts = [lance.dataset(url, version=one).count_rows() for one in range(before, lance.dataset(url).version + 1)]
    return sum(earlier != later for earlier, later in zip(counts, counts[1:], strict=False))


def _fresh(folder: str, name: str) -> Path:
    path = Path(folder, name)
    path.mkdir()
    return path


def _kills(folder: Path, arguments: argparse.Namespace) -> None:
    workers = Workers(folder, arguments.workers, arguments.chunks, arguments.milliseconds, SAVE_SECONDS)
    began, rng = time.monotonic(), random.Random(arguments.seed)
    workers.kill_workers(arguments.kills, rng)
    publications = workers.kill_publishing(max(1, arguments.kills // 4), rng)
    check(workers.location, arguments.chunks)
    again = 100 * (workers.compressed() / arguments.chunks - 1)
    print(
        f"{arguments.kills} kills of {arguments.workers} workers and {publications} of the process that publishes, in "
        f"{time.monotonic() - began:.0f} s: {arguments.chunks:,} chunks, each once, nothing left behind; {again:.0f} % "
        "of them compressed again"
    )


if __name__ == "__main__":
    command.run(main)
