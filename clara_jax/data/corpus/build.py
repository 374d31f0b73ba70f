"""The pipeline from files to a corpus: read and chunked in worker processes, compared and written in order."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from clara_jax.data.corpus.duplicates import Duplicates, Signature, require_datasketch, signature
from clara_jax.data.corpus.files import JSONL, InputFile, find_files
from clara_jax.data.corpus.readers import json_document, read_file, require
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import GZIP, ZSTANDARD, raw_lines, write_json_lines
from clara_jax.text.chunks import Chunker, DocumentChunk

STOP, SKIP = "stop", "skip"
SLICE = 64  # lines of a JSONL file in a task
AHEAD = 8  # tasks given out for each worker: they bound what waits in memory
WORKER_BYTES = 2**21  # of input for each worker process: starting one takes seconds


@dataclasses.dataclass(frozen=True)
class CorpusReport:
    """The result of a build: counts of what was read, dropped and written.

    Attributes:
      output: the corpus file.
      files: number of files named or found, by kind.
      ignored: number of files in folders of no known kind, by suffix.
      guessed: number of files whose encoding was guessed, by encoding.
      cleaned: number of characters that were dropped or replaced, as NUL and ligatures are.
      documents: that were read, repeated ones included.
      chunks: that were written.
      tokens: (least, median, most) of a written chunk, the title line included.
      exact, near: number of chunks dropped as duplicates.
      rejected: number of files and lines that could not be read.
      seconds: that it took.
    """

    output: str
    files: collections.Counter[str]
    ignored: collections.Counter[str]
    guessed: collections.Counter[str]
    cleaned: int
    documents: int
    chunks: int
    tokens: tuple[int, float, int]
    exact: int
    near: int
    rejected: int
    seconds: float

    def __str__(self) -> str:
        def listed(counts: collections.Counter[str]) -> str:
            return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"

        least, median, most = self.tokens
        lines = [
            f"{self.output}: {self.chunks:,} chunks of {self.documents:,} documents, {self.seconds:.1f} s",
            f"files       {listed(self.files)}" + (f"; passed over: {listed(self.ignored)}" if self.ignored else ""),
            f"tokens      least {least}, median {median:g}, most {most}",
            f"duplicates  {self.exact:,} exact, {self.near:,} near"
            + (f" ({duplicates_file(self.output)})" if self.exact + self.near else ""),
            f"rejected    {self.rejected:,}" + (f" ({rejected_file(self.output)})" if self.rejected else ""),
        ]
        if self.guessed:
            lines.append(f"encodings   guessed: {listed(self.guessed)}")
        if self.cleaned:
            lines.append(f"cleaned     {self.cleaned:,} characters that are not shown, or stand for others")
        return "\n".join(lines)


def rejected_file(output: str | os.PathLike) -> str:
    """Return the path of the file of rejected files and lines, beside the output."""
    return f"{os.fspath(output)}.rejected.jsonl"


def duplicates_file(output: str | os.PathLike) -> str:
    """Return the path of the file of dropped duplicates, beside the output."""
    return f"{os.fspath(output)}.duplicates.jsonl"


def build_corpus(
    inputs: Sequence[str],
    output: str | os.PathLike,
    chunker: Chunker,
    near_duplicates: float | None = 0.8,
    on_error: str = STOP,
    workers: int | None = None,
    progress: bool = True,
    follow_links: bool = False,
) -> CorpusReport:
    """Write the corpus of some inputs: one JSON object a chunk, see `DocumentChunk`.

    The same input gives the same bytes, whatever the number of workers. ``OUTPUT.rejected.jsonl`` and
    ``OUTPUT.duplicates.jsonl`` stand beside the output, where anything was rejected or dropped.

    Args:
      inputs: folders, files, patterns; see `find_files`.
      output: a .jsonl file, also with .gz or .zst after it.
      chunker: chunks the documents.
      near_duplicates: Jaccard similarity from which on a chunk is dropped that repeats one before it; equal texts are
        dropped first. None keeps everything.
      on_error: "stop" at the first file or line that cannot be read, or "skip" it.
      workers: processes that read and chunk; 1 does it all in this one. Default: by cores and size of the input.
      progress: show a bar on standard error.
      follow_links: read files that links in a folder lead to outside of it.

    Raises:
      ClaraError: nothing to read, a mistake in the input and ``on_error`` is "stop", nothing that could be read, a
        missing package, or the output cannot be written. Nothing is written then.
    """
    if on_error not in (STOP, SKIP):
        raise ClaraError(f'--on-error: {on_error!r} must be "{STOP}" or "{SKIP}"')
    output, started = os.fspath(output), time.monotonic()
    files, ignored = find_files(inputs, follow_links)
    written = {os.path.realpath(path) for path in (output, rejected_file(output), duplicates_file(output))}
    files = [file for file in files if os.path.realpath(file.path) not in written]  # by a run before
    if not files:
        raise ClaraError(f"--input: {', '.join(inputs)}: holds nothing but the output")
    require(file.kind for file in files)
    if near_duplicates is not None:
        require_datasketch()
    size = sum(file.size for file in files)
    if workers is None:
        workers = min(_cores(), 1 + size // WORKER_BYTES)
    corpus = _Corpus(output, on_error, None if near_duplicates is None else Duplicates(near_duplicates))
    tasks = itertools.chain.from_iterable(map(_tasks, files))
    with (
        _mapping(_Work(chunker, near_duplicates is not None), workers) as work,
        tqdm(total=size or None, unit="B", unit_scale=True, desc="corpus", disable=not progress) as bar,
        corpus.writing(),
    ):
        for task, results in work(tasks):
            for result in results:
                corpus.take(result)
            bar.update(task.size)
            bar.set_postfix(chunks=len(corpus.tokens), refresh=False)
    kinds = collections.Counter(file.kind for file in files)
    return corpus.report(kinds, ignored, time.monotonic() - started)


@dataclasses.dataclass(frozen=True)
class _Task:
    """A file, or some lines of one; ``size`` is its share of the input, in bytes as stored."""

    file: InputFile
    lines: tuple[tuple[str, bytes], ...]
    size: int
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Rejected:
    """A file or line that could not be read."""

    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Read:
    """A document that was read and chunked."""

    id: str
    source: str
    guessed_encoding: str | None
    cleaned: int
    chunks: tuple[DocumentChunk, ...]
    signatures: tuple[Signature, ...]


def _tasks(file: InputFile) -> Iterator[_Task]:
    if file.kind != JSONL:
        yield _Task(file, (), file.size)
        return
    # How far a compressed file has been read is not known: it counts when it is done.
    packed, error = file.path.endswith((GZIP, ZSTANDARD)), None
    lines, empty = raw_lines(file.path), True
    while True:
        part: list[tuple[str, bytes]] = []
        try:
            for line in itertools.islice(lines, SLICE):
                part.append(line)
        except ClaraError as problem:  # what stands before it was read
            error = str(problem)
        last, empty = len(part) < SLICE, empty and not part
        if last and empty and error is None:
            error = f"{file.path}: holds no documents; write one JSON object on each line"
        yield _Task(file, tuple(part), (file.size if last else 0) if packed else sum(len(x) for _, x in part), error)
        if last:
            return


class _Work:
    """The work of a worker on a task, which does not depend on other tasks."""

    def __init__(self, chunker: Chunker, signatures: bool):
        self.chunker, self.signatures = chunker, signatures

    def __call__(self, task: _Task) -> list[_Read | _Rejected]:
        if task.file.kind == JSONL:
            results = [
                self._result(where, functools.partial(json_document, line, where, task.file.name))
                for where, line in task.lines
            ]
        else:
            results = [self._result(task.file.path, functools.partial(read_file, task.file))]
        if task.error is not None:
            results.append(_Rejected(task.file.path, task.error))
        return results

    def _result(self, place: str, read: Callable) -> _Read | _Rejected:
        try:
            document = read()
            chunks = tuple(self.chunker(document))
        except ClaraError as error:
            return _Rejected(place, str(error))
        signatures = tuple(signature(chunk.body) for chunk in chunks) if self.signatures else ()
        return _Read(document.id, document.source, document.guessed_encoding, document.cleaned, chunks, signatures)


class _Corpus:
    """The state of a build: what is known of everything read so far, and the files that are written."""

    def __init__(self, output: str, on_error: str, duplicates: Duplicates | None):
        self.output, self.on_error, self.duplicates = output, on_error, duplicates
        self.sources: dict[str, str] = {}  # of documents, by id
        self.tokens: list[int] = []
        self.guessed: collections.Counter[str] = collections.Counter()
        self.exact = self.near = self.cleaned = 0
        self.rejected: list[_Rejected] = []
        self._files: contextlib.ExitStack | None = None
        self._writers: dict[str, Callable] = {}

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Open the output files; they are there only when the block has ended without an error."""
        with contextlib.ExitStack() as self._files:
            self._writer(self.output)
            yield
            if not self.sources:
                raise ClaraError(
                    f"nothing could be read; the first of {len(self.rejected):,}: {self.rejected[0].reason}"
                )
        for path in (rejected_file(self.output), duplicates_file(self.output)):
            if path not in self._writers:
                Path(path).unlink(missing_ok=True)

    def _writer(self, path: str) -> Callable:
        if path not in self._writers:
            assert self._files is not None  # within `writing`
            self._writers[path] = self._files.enter_context(write_json_lines(path))
        return self._writers[path]

    def take(self, result: _Read | _Rejected) -> None:
        """Write a document's chunks, or the reason why there are none."""
        if isinstance(result, _Read) and result.id in self.sources:
            reason = (
                f"{result.source}: its id {result.id!r} is that of {self.sources[result.id]}, too; give other ids, or "
                "name one folder that holds both files: ids are paths below it"
            )
            result = _Rejected(result.source, reason)
        if isinstance(result, _Rejected):
            if self.on_error == STOP:
                raise ClaraError(result.reason)
            self.rejected.append(result)
            self._writer(rejected_file(self.output))({"file": result.place, "reason": result.reason})
            return
        self.sources[result.id] = result.source
        self.cleaned += result.cleaned
        if result.guessed_encoding:
            self.guessed[result.guessed_encoding] += 1
        for chunk, of in itertools.zip_longest(result.chunks, result.signatures):
            match = self.duplicates.add(chunk.id, of) if self.duplicates else None
            if match:
                self.exact, self.near = self.exact + match.exact, self.near + (not match.exact)
                line = {"id": chunk.id, "of": match.id, "similarity": round(match.similarity, 4)}
                self._writer(duplicates_file(self.output))(line)
            else:
                self.tokens.append(chunk.tokens)
                self._writer(self.output)(chunk.fields())

    def report(
        self, files: collections.Counter[str], ignored: collections.Counter[str], seconds: float
    ) -> CorpusReport:
        """Return the report of the build."""
        tokens = min(self.tokens), statistics.median(self.tokens), max(self.tokens)
        return CorpusReport(
            self.output,
            files,
            ignored,
            self.guessed,
            self.cleaned,
            len(self.sources),
            len(self.tokens),
            tokens,
            self.exact,
            self.near,
            len(self.rejected),
            seconds,
        )


Mapping = Callable[[Iterable[_Task]], Iterator[tuple[_Task, list[_Read | _Rejected]]]]


@contextlib.contextmanager
def _mapping(work: _Work, workers: int) -> Iterator[Mapping]:
    """Give a function that yields every task with its results, in order."""
    if workers <= 1:
        yield lambda tasks: ((task, work(task)) for task in tasks)
        return
    # A forked process would share what JAX and the tokenizers have started.
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        yield lambda tasks: _in_order(pool, tasks, AHEAD * workers)
    except BaseException as error:
        # Their remaining work is not wanted: Ctrl-C should not wait for it.
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        # Tasks that are still being written to them have no reader: Python 3.11 would wait for ever (cpython 94777).
        pool._call_queue._reader.close()  # pyright: ignore[reportAttributeAccessIssue]  # private to CPython
        if isinstance(error, BrokenProcessPool):
            raise ClaraError(
                "a process that read documents was killed (memory?); give fewer --workers, 1 to read in one process"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[_Task], ahead: int):
    waiting: collections.deque = collections.deque()
    for task in tasks:
        waiting.append((task, pool.submit(_run, task)))
        if len(waiting) >= ahead:
            task, future = waiting.popleft()
            yield task, future.result()
    for task, future in waiting:
        yield task, future.result()


_worker: _Work


def _start_worker(work: _Work) -> None:
    global _worker
    _worker = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides


def _run(task: _Task) -> list[_Read | _Rejected]:
    return _worker(task)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
