"""Time what a newcomer waits for: the help of each command, a first answer, a server until it is ready.

    python -m benchmarks.first_answer --checkpoint runs/smoke [--documents FILE] [--question TEXT] [--repeats 3]

Each is a new process, timed from its start to its end, or to its answer, in seconds of wall time and of processors. The
first call of ask compiles what is not in the cache of compiled programs yet; the others load it. Programs that are
compiled in them are counted: there should be none.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.serving_load import PATIENCE, QUEUE, server
from clara_jax import command
from clara_jax.__main__ import COMMANDS
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines

HELP, ANSWER = 0.5, 3.0  # seconds that are asked for
ROWS = 16  # of the server, as by default
_HIT, _COMPILED = "Persistent compilation cache hit", "Finished XLA compilation"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("first_answer", __doc__, package="benchmarks")
    option = command.add_option
    option(parser, "--checkpoint", "runs/smoke", default="runs/smoke")
    parser.add_argument("--documents", metavar="FILE", help="(4 of the run's world)")
    parser.add_argument("--question", metavar="TEXT", help="(the first of the run's world)")
    option(parser, "--repeats", "3", default=3)
    return parser


def timed(*words: str) -> tuple[float, float, str]:
    """Run a command of the package; return its seconds, those of processors, and what it logged of compilation."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=os.environ | {"JAX_LOG_COMPILES": "1"}
    )
    seconds, after = time.monotonic() - began, os.times()
    if done.returncode:
        raise ClaraError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, spent, done.stderr


def served(checkpoint: str, store: Path, documents: str, question: str) -> tuple[float, float]:
    """Start a server; return the seconds until it is ready, and those of its first answer."""
    timed("clara_jax.compress", "--checkpoint", checkpoint, "--store", str(store), "--corpus", documents)
    began = time.monotonic()
    with server(checkpoint, store, ROWS, QUEUE) as (address, _):
        ready = time.monotonic()
        body = {"messages": [{"role": "user", "content": question}]}
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=PATIENCE).raise_for_status()
        return ready - began, time.monotonic() - ready


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    world = Path(arguments.checkpoint, "world")
    if not (arguments.documents and arguments.question) and not world.is_dir():
        raise ClaraError(f"{world}: there is no such folder; name --documents and --question")
    question = arguments.question or next(read_json_lines(str(world / "questions.jsonl")))[1]["question"]
    rows = []
    for name in COMMANDS:
        runs = [timed(f"clara_jax.{name}", "--help") for _ in range(arguments.repeats)]
        rows.append((f"{name} --help", *_medians(runs), f"{HELP} s"))
    with tempfile.TemporaryDirectory() as folder:
        documents = arguments.documents
        if not documents:
            lines = (world / "documents.jsonl").read_text("utf-8").splitlines(keepends=True)[:4]
            documents = str(Path(folder, "documents.jsonl"))
            Path(documents).write_text("".join(lines), "utf-8")
        ask = ("clara_jax.ask", "--checkpoint", arguments.checkpoint, "--documents", documents, question)
        first, *later = (timed(*ask) for _ in range(1 + arguments.repeats))
        rows.append(("ask, first call", *first[:2], ""))
        rows.append(("ask, later calls", *_medians(later), f"{ANSWER} s"))
        compiled = [len(re.findall(_COMPILED, said)) - len(re.findall(_HIT, said)) for *_, said in later]
        ready, answer = served(arguments.checkpoint, Path(folder, "store"), documents, question)
        rows += [("serve until it is ready", ready, None, ""), ("its first answer", answer, None, "")]
    print("\n| what | s | of processors | asked for |\n| --- | --- | --- | --- |")
    for what, seconds, spent, wanted in rows:
        print(f"| {what} | {seconds:.2f} | {'' if spent is None else f'{spent:.2f}'} | {wanted} |")
    print(f"\nprograms compiled in the later calls: {', '.join(map(str, compiled))}")


def _medians(runs: list[tuple[float, float, str]]) -> tuple[float, float]:
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


if __name__ == "__main__":
    command.run(main)
