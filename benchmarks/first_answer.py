"""Time what a newcomer waits for: the help of each command, a first answer, a server until it is ready.

    python -m benchmarks.first_answer --checkpoint runs/smoke [--documents FILE] [--question TEXT] [--repeats 3]

Each is a new process, timed from its start to its end, or to its answer, in seconds of wall time and of processors. The
first call of ask compiles what is not in the cache of compiled programs yet; the others load it. Programs that are
compiled in them are counted: there should be none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from clara_jax import command
from clara_jax.__main__ import COMMANDS
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines

HELP, ANSWER = 0.5, 3.0  # seconds that are asked for
_PAUSE, _LONGEST = 0.05, 600.0  # seconds between two looks at the server's health; after which it has failed
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
    words = ["clara_jax.serve", "--checkpoint", checkpoint, "--store", str(store), "--port", "0"]
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = iter(process.stdout)
        address = next((line.split()[-1] for line in said if line.startswith("listening at ")), None)
        if address is None:
            raise ClaraError("the server ended before it listened")
        while not _ready(address):
            if time.monotonic() - began > _LONGEST or process.poll() is not None:
                raise ClaraError("the server did not get ready")
            time.sleep(_PAUSE)
        ready = time.monotonic()
        body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
        request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=_LONGEST).read()
        return ready - began, time.monotonic() - ready
    finally:
        process.terminate()
        process.wait()


def _ready(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=_LONGEST).status == 200
    except urllib.error.HTTPError:
        return False


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
