"""Measure the client's cost of a request of the data synthesis: requests per second and CPU time of one core.

    python -m benchmarks.synthesis [--requests 3000] [--concurrency 64] [--think 20] [--repeats 3]

A server in another process gives every request the same answer after --think milliseconds, and does nothing else; the
client runs on one core, the server on another where there is one. "endpoint" is the client alone; "all" is a step of
the synthesis: the prompt is made, the request looked up in the journal, sent, its answer written down and read. Where
other work runs on the machine, the CPU time is the figure to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.synthesis.completion import CompletionRequest
from clara_jax.synthesis.endpoint import Endpoint
from clara_jax.synthesis.journal import Journal
from clara_jax.synthesis.prompts import PromptTemplates
from clara_jax.synthesis.replies import SCHEMAS
from clara_jax.synthesis.runner import StepRunner, SynthesisSettings

STEP = "simple_questions"
QUESTIONS = [f"What stands on hill {number} above the old town?" for number in range(5)]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("synthesis", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--requests", type=int, default=3000, metavar="N", help="of a measurement (3000)")
    add("--concurrency", type=int, default=64, metavar="N", help="requests in flight (64)")
    add("--think", type=float, default=20, metavar="MS", help="milliseconds that the server takes (20)")
    command.add_option(parser, "--repeats", "3", default=3)
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    if min(arguments.requests, arguments.concurrency, arguments.repeats) < 1 or arguments.think < 0:
        raise ClaraError("--requests, --concurrency and --repeats must be at least 1, --think at least 0")
    if arguments.serve:
        asyncio.run(_serve(arguments.think / 1000))
        return
    cores = sorted(os.sched_getaffinity(0))
    with _server(arguments.think, cores[-1]) as (url, process):
        os.sched_setaffinity(0, {cores[0]})
        runs = asyncio.run(_runs(url, arguments))
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        stdin.close()
        most = int(stdout.readline())
    print(
        f"{arguments.repeats} x {arguments.requests} requests on one of {len(cores)} cores, at most {most} in flight\n"
        "\n| what | requests/s (least to most) | CPU ms a request (least to most) |\n| --- | --- | --- |"
    )
    for name, pairs in runs.items():
        rates, costs = zip(*pairs, strict=True)
        print(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | "
            f"{statistics.median(costs):.2f} ({min(costs):.2f} to {max(costs):.2f}) |"
        )


async def _runs(url: str, arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return (requests per second, milliseconds of CPU time for each) of every repeat, by name of the measurement."""
    endpoint = Endpoint(url, "none", concurrency=arguments.concurrency)
    with tempfile.TemporaryDirectory() as folder:
        journal, prompts = Journal(Path(folder) / "journal"), PromptTemplates.load()
        runner = StepRunner(endpoint.ask, journal, prompts, SynthesisSettings())

        async def alone(number: int) -> None:
            messages = prompts.messages(STEP, "en", document=_document(number))
            request = CompletionRequest(messages, SCHEMAS[STEP], max_tokens=1024, temperature=0.7, seed=number)
            reply = await endpoint.ask(request)
            _check(json.loads(reply.text)["questions"])

        async def all_of_it(number: int) -> None:
            _check(await runner(str(number), STEP, "en", document=_document(number)))

        ways, numbers = {"endpoint": alone, "all": all_of_it}, itertools.count()
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        try:
            for way in ways.values():
                await _concurrently(way, numbers, arguments.concurrency)  # connects
            for _ in tqdm(range(arguments.repeats), unit="run", leave=False):
                for name, way in ways.items():
                    began, used = time.perf_counter(), time.process_time()
                    await _concurrently(way, numbers, arguments.requests)
                    seconds, used = time.perf_counter() - began, time.process_time() - used
                    runs[name].append((arguments.requests / seconds, 1000 * used / arguments.requests))
        finally:
            await endpoint.close()
            journal.close()
    return runs


async def _concurrently(way: Callable[[int], Awaitable[None]], numbers: Iterator[int], count: int) -> None:
    await asyncio.gather(*(way(next(numbers)) for _ in range(count)))


def _document(number: int) -> str:
    return f"Wall {number} stands on the hill. " * 40


def _check(questions: Sequence[str]) -> None:
    if list(questions) != QUESTIONS:
        raise ClaraError(f"another answer than the server's: {questions}")


@contextlib.contextmanager
def _server(think: float, core: int) -> Iterator[tuple[str, subprocess.Popen]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.synthesis", "--serve", "--think", str(think)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None  # a pipe
    try:
        os.sched_setaffinity(process.pid, {core})
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", process
    finally:
        process.kill()
        process.wait()


async def _serve(think: float) -> None:
    """Serve, printing first the port, and once standard input ends the most requests that were in flight."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _FixedReply(think), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(_FixedReply.most, flush=True)


class _FixedReply(asyncio.Protocol):
    """An HTTP/1.1 server of one reply: it reads a request's length alone, and keeps the connection."""

    in_flight = most = 0
    _choice = {
        "message": {"role": "assistant", "content": json.dumps({"questions": QUESTIONS})},
        "finish_reason": "stop",
    }
    _body = json.dumps({"choices": [_choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 80}}).encode()
    _answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_body), _body)

    def __init__(self, think: float):
        self._think, self._read = think, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # a connection's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, whole, rest = self._read.partition(b"\r\n\r\n")
        if not whole or len(rest) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._read = b""
        _FixedReply.in_flight += 1
        _FixedReply.most = max(_FixedReply.most, _FixedReply.in_flight)
        asyncio.get_running_loop().call_later(self._think, self._say)

    def _say(self) -> None:
        _FixedReply.in_flight -= 1
        self._transport.write(self._answer)


if __name__ == "__main__":
    command.run(main)
