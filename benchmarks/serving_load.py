"""Measure a server under load: many clients at once, continuous batching against one row, and refused requests.

    python -m benchmarks.serving_load [--base smollm2] [--clients 32] [--seconds 120] [--documents 64]
    python -m benchmarks.serving_load --checkpoint runs/first

Starts `python -m clara_jax.serve` on the loopback with fresh adapters on a base (the answers mean nothing, and take
as long), fills its store over HTTP, and asks from --clients clients, each its next question when it has the
answer to the last. Three servers, one after the other: 16 rows; 1 row; 16 rows of which only a few requests may wait,
so that clients are refused (429) and come again after Retry-After. Throughput counts answers; the memory is the
server's resident set, by the quarters of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks.ask import WORDS
from clara_jax import command
from clara_jax.errors import ClaraError

ROWS, QUEUE, SHORT_QUEUE = 16, 64, 4
PATIENCE = 600  # seconds for a server to start, and for an answer
_PAUSE = 0.05  # seconds between two looks at its health


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("serving_load", __doc__, package="benchmarks")
    add, option = parser.add_argument, command.add_option
    option(parser, "--base", "with fresh adapters; smollm2", default="smollm2")
    option(parser, "--checkpoint", "serve this one instead")
    add("--clients", type=int, default=32, metavar="N", help="who ask at the same time (32)")
    add("--seconds", type=int, default=120, metavar="N", help="of each measurement (120)")
    add("--documents", type=int, default=64, metavar="N", help="in the store (64)")
    option(parser, "--max-new-tokens", "32", default=32)
    command.add_renamed_option(parser, "--new-tokens", "--max-new-tokens", type=int)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if min(arguments.clients, arguments.seconds, arguments.documents, arguments.max_new_tokens) < 1:
        raise ClaraError("--clients, --seconds, --documents and --max-new-tokens must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or _fresh(arguments.base, Path(folder, "checkpoint"))
        print(
            f"{arguments.checkpoint or arguments.base}: {arguments.clients} clients, {arguments.seconds} s each, "
            f"{arguments.documents} documents of about 225 words, at most {arguments.max_new_tokens} tokens an answer\n"
            "\n| rows | may wait | answers | answers/s | p50 | p95 | statuses | MiB after 1/4, 1/2, 3/4, all |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            flush=True,
        )
        for rows, queue in ((ROWS, QUEUE), (1, QUEUE), (ROWS, SHORT_QUEUE)):
            with server(checkpoint, Path(folder, "store"), rows, queue) as (url, process):
                _fill(url, arguments.documents)
                load = asyncio.run(_Load(url, process, arguments).run())
            times, sizes = sorted(load.times), load.sizes
            quarters = [statistics.median(part) for part in np.array_split(sizes, 4)]
            print(
                f"| {rows} | {queue} | {len(times)} | {len(times) / load.seconds:.2f} | "
                f"{statistics.median(times):.2f} s | {statistics.quantiles(times, n=20)[-1]:.2f} s | "
                f"{', '.join(f'{status}: {count}' for status, count in sorted(load.statuses.items()))} | "
                f"{', '.join(f'{size:,.0f}' for size in quarters)} |",
                flush=True,
            )


def _fresh(base: str, directory: Path) -> str:
    """Make a checkpoint on a base, in a separate process: this one has clients alone."""
    program = (
        "import sys; from pathlib import Path; from clara_jax.checkpoints import opening; "
        "from clara_jax.method.clara import ClaraConfig; from clara_jax.model.sharding import make_mesh; "
        "opening.from_base(sys.argv[1], ClaraConfig(), make_mesh(), 'float32').save(Path(sys.argv[2]), 'scp')"
    )
    subprocess.run([sys.executable, "-c", program, base, str(directory)], check=True)
    return str(directory)


@contextlib.contextmanager
def server(checkpoint: str, store: Path, rows: int, queue: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run a server inside the block; yield its address and its process, once it answers at once."""
    options = ["--port", "0", "--rows", str(rows), "--queue", str(queue)]
    command = [sys.executable, "-m", "clara_jax.serve", "--checkpoint", checkpoint, "--store", str(store), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # a pipe
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("listening at "):
                break
        else:
            raise ClaraError(f"the server did not start: {''.join(lines)}")
        address = line.split()[-1]
        while httpx.get(f"{address}/health", timeout=PATIENCE).status_code != 200:  # its programs are compiled
            if process.poll() is not None:
                raise ClaraError("the server ended before it was ready")
            time.sleep(_PAUSE)
        yield address, process
        process.send_signal(signal.SIGTERM)
        if process.wait(PATIENCE):
            raise ClaraError(f"the server ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _fill(url: str, count: int) -> None:
    rng = np.random.default_rng(0)
    documents = [{"id": f"d{i}", "text": " ".join(rng.choice(WORDS, 225))} for i in range(count)]
    httpx.post(f"{url}/v1/documents", json={"documents": documents}, timeout=PATIENCE).raise_for_status()


class _Load:
    """The clients of one measurement, and their results.

    Attributes:
      times: seconds of each answer, refusals before it left out.
      statuses: of all responses; "error" where there was none.
      sizes: MiB of the server, once a second.
      seconds: it took.
    """

    def __init__(self, url: str, process: subprocess.Popen, arguments: argparse.Namespace):
        self._url, self._process, self._arguments = url, process, arguments
        self.times: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.sizes: list[float] = []

    async def run(self) -> _Load:
        limits = httpx.Limits(max_connections=self._arguments.clients)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, limits=limits) as client:
            await self._client(client, -1, time.perf_counter() + 1)  # compiles
            self.times, self.statuses = [], Counter()
            began = time.perf_counter()
            until = began + self._arguments.seconds
            watching = asyncio.ensure_future(self._watch(until))
            await asyncio.gather(*(self._client(client, i, until) for i in range(self._arguments.clients)))
            self.seconds = time.perf_counter() - began
            await watching
        return self

    async def _client(self, client: httpx.AsyncClient, number: int, until: float) -> None:
        rng = np.random.default_rng((1, number + 1))
        while time.perf_counter() < until:
            question = f"What is the {' '.join(rng.choice(WORDS, 8))}?"
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": self._arguments.max_new_tokens}
            began = time.perf_counter()
            try:
                response = await client.post("/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[str(response.status_code)] += 1
            if response.status_code == 200:
                self.times.append(time.perf_counter() - began)
            else:
                await asyncio.sleep(float(response.headers.get("retry-after", 1)))

    async def _watch(self, until: float) -> None:
        with tqdm(total=self._arguments.seconds, unit="s", leave=False) as bar:
            while time.perf_counter() < until:
                self.sizes.append(_resident(self._process.pid))
                bar.update(1)
                await asyncio.sleep(1)


def _resident(process: int) -> float:
    """Return the resident set of a process, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    command.run(main)
