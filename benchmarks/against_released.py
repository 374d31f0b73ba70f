"""Time this code and the released PyTorch code side by side: training steps, compression and a question.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 'transformers==4.53.*' 'peft==0.17.*'
    git clone https://github.com/apple/ml-clara CODE
    python -m benchmarks.against_released --released CODE --released-python VENV/bin/python [--output FILE] [--data DIR]

Both sides have the same cores, as many threads, the same records, the same base (converted once by our export) and
adapters that change nothing yet. They are measured in turns, first one, then the other, each in a process that waits
while the other works. A first call of each is not counted: it compiles here, and there it makes what is made once; what
came of it is compared. Each side is measured in float32 and in the precision that may be its best; "at its best" is the
faster of the two. `released_driver.py` is the other side.

scp            one step, the records' documents compressed with a backward pass
end_to_end     one step; the released code compresses the candidates in it, ours reads their memories from a store,
               where they were put once. The released code pads questions to its longest prompt: the row is there
               a second time with questions that have their true length
compress       documents to memories
question       an answer: the released code compresses the candidates first, ours reads them from a document store

Making batches from records counts on our side alone. With --output measurements are kept as they are made: the same
command, started again, makes those that are missing. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.cores import OtherLoad, pin
from benchmarks.released_driver import BATCHES, MODEL
from benchmarks.released_rows import ROWS, BenchmarkRow, Inputs, Ours, questions
from clara_jax import command
from clara_jax.checkpoints import exporting, opening
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.input_pipeline.records import Record, read_records
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.precision import PRECISIONS
from clara_jax.model.sharding import make_mesh

FILES = {"scp": "squad/stage1_pretrain_qa.train.jsonl", "end_to_end": "squad/stage2_end_to_end.train.jsonl"}
NEEDS = "torch==2.13.0 'transformers==4.53.*' 'peft==0.17.*'"
# Options that measurements depend on, by their names in the file of measurements.
COUNTS = {
    "scp_batch": "--scp-batch",
    "batch": "--batch",
    "candidates": "--candidates",
    "k": "--k",
    "new_tokens": "--max-new-tokens",
}
RELEASED, OURS = "released", "ours"
DRIVER = Path(__file__).with_name("released_driver.py")


class ReleasedProcess:
    """The released code's process: takes requests, gives answers, and ends with the block.

    Args:
      arguments: name the code and the interpreter.
      folder: holds the checkpoint; what the process prints goes into a file there.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, threads: int):
        self._python, self._log = arguments.released_python, folder / "released.log"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        # The packages on this process's path are of another environment.
        environment.pop("PYTHONPATH", None)
        with open(self._log, "wb") as errors:
            self.process = subprocess.Popen(
                [self._python, DRIVER, arguments.released, folder / "checkpoint", str(threads), str(arguments.k)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def ask(self, what: str, **request: Any) -> Any:
        """Return the answer to a request, by the name of a method of `released_driver.Released`.

        Raises:
          ClaraError: the other side could not do it, or has ended.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps({"do": what} | request) + "\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            lines = self._log.read_text(errors="replace").split("\n")
            last = next((text.strip() for text in reversed(lines) if text.strip()), "it said nothing")
            raise ClaraError(f"{self._python}: the released side ended, exit code {self.process.wait()}: {last}")
        answer = json.loads(line)
        if isinstance(answer, dict) and (error := answer.get("error")):
            hint = f"; {self._python} -m pip install {NEEDS}" if "ModuleNotFoundError" in error else ""
            raise ClaraError(f"{self._python}: the released side, asked for {what}: {error}{hint}")
        return answer

    def __enter__(self) -> ReleasedProcess:
        return self

    def __exit__(self, *ignored: Any) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


class Measurements:
    """Seconds of each row and side, and what their results share, kept in a file as they come.

    Args:
      path: None keeps them in memory alone.
      settings: what they depend on; a file of others is refused.

    Raises:
      ClaraError: a file that holds something else, or measurements of other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"settings": dict(settings), "seconds": {}, "agreement": {}, "others": []}
        if path is None or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: found[name] for name in self.content}
        except (OSError, ValueError, KeyError, TypeError):
            raise ClaraError(f"{path}: holds no measurements of this benchmark; name another --output") from None
        for name, value in settings.items():
            if kept["settings"].get(name) != value:
                raise ClaraError(
                    f"{path}: was measured with {name} {kept['settings'].get(name)!r}, now it is {value!r}; name "
                    "another --output"
                )
        self.content = kept

    def seconds(self, row: str, side: str, precision: str) -> list[float]:
        """Return the measurements so far; the list may be added to."""
        return self.content["seconds"].setdefault(row, {}).setdefault(f"{side} {precision}", [])

    def save(self) -> None:
        """Write the file."""
        if self.path is not None:
            with replaced_when_whole(self.path) as temporary:
                temporary.write_text(json.dumps(self.content | {"table": rows(self.content["seconds"])}, indent=1))


def rows(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Return the rows of the table.

    They hold medians of each side in float32 and at its best, and the ratios between them, released / ours. A side's
    best is its faster precision; a value that was not measured is None.
    """
    found = []
    for name, sides in seconds.items():
        medians = {side: statistics.median(values) for side, values in sides.items() if values}
        row: dict[str, Any] = {"row": name, "repeats": min(map(len, sides.values()), default=0)}
        for side in (RELEASED, OURS):
            of_side = {key: value for key, value in medians.items() if key.startswith(f"{side} ")}
            row[f"{side} float32"] = of_side.get(f"{side} float32")
            best = min(of_side, key=of_side.__getitem__, default=None)
            row[f"{side} best"] = best and of_side[best]
            row[f"{side} best precision"] = best and best.removeprefix(f"{side} ")
        for which in ("float32", "best"):
            one, other = row[f"{RELEASED} {which}"], row[f"{OURS} {which}"]
            row[f"ratio {which}"] = one / other if one and other else None
        found.append(row)
    return found


def table(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the table of measurements in Markdown."""
    lines = [
        "| what | released, float32 | ours, float32 | ratio | released at its best | ours at its best | ratio |",
        "| --- |" + " --- |" * 6,
    ]
    for row in rows(seconds):
        cells = [row["row"]]
        for which in ("float32", "best"):
            for side in (RELEASED, OURS):
                value = row[f"{side} {which}"]
                note = f" ({row[f'{side} best precision']})" if which == "best" and value else ""
                cells.append(f"{value:.2f} s{note}" if value else "")
            cells.append(f"**{row[f'ratio {which}']:.2f}**" if row[f"ratio {which}"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read(data: Path, arguments: argparse.Namespace) -> dict[str, list[Record]]:
    """Read the records of both stages; those of end_to_end have as many candidates as are asked for.

    Raises:
      ClaraError: too few of them, or a question with too few candidates, in words.
    """
    found = {}
    needed = {"scp": arguments.scp_batch, "end_to_end": max(arguments.batch, questions(arguments.repeats))}
    for stage, count in needed.items():
        path = data / FILES[stage]
        found[stage] = read_records(path, stage, count)
        if len(found[stage]) < count:
            raise ClaraError(f"{path}: holds {len(found[stage])} records; this run takes {count}")
    for number, record in enumerate(found["end_to_end"]):
        if len(record.documents) < max(arguments.candidates, arguments.k):
            raise ClaraError(
                f"{record.where}: {len(record.documents)} candidates; {arguments.candidates} are asked for, and "
                f"{arguments.k} are read"
            )
        kept = tuple(place for place in record.positives if place < arguments.candidates)
        found["end_to_end"][number] = dataclasses.replace(
            record, documents=record.documents[: arguments.candidates], positives=kept
        )
    return found


def measure(
    row: BenchmarkRow,
    sides: Mapping[tuple[str, str], Callable[[int], dict]],
    found: Measurements,
    repeats: int,
    say: Callable,
) -> None:
    """Fill a row up to so many measurements of each side, in turns.

    Args:
      row: the row.
      sides: the functions to time, by side and precision; each takes the number of the measurement, which is below 0
        for those that do not count.
      found: takes the measurements.
      repeats: measurements of each side.
      say: prints a line.
    """
    if all(len(found.seconds(row.name, *side)) >= repeats for side in sides):
        return
    for turn in range(-row.warm_up, 0):
        results = {}
        for side, call in sides.items():
            say(f"{row.name}: {' '.join(side)}, does not count")
            results[side] = call(turn)
        found.content["agreement"].setdefault(
            row.name, row.compare(results[RELEASED, "float32"], results[OURS, "float32"])
        )
    for turn in range(repeats):
        for side, call in sides.items():
            seconds = found.seconds(row.name, *side)
            if len(seconds) <= turn:
                seconds.append(call(turn)["seconds"])
                found.save()
                say(f"{row.name}: {' '.join(side)}, {turn + 1} of {repeats}: {seconds[-1]:.2f} s")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("against_released", __doc__, package="benchmarks")
    add, option = parser.add_argument, command.add_option
    add("--released", type=Path, required=True, metavar="DIR", help="a checkout of the released code")
    add("--released-python", type=Path, required=True, metavar="PATH", help="the interpreter of its environment")
    shared = os.environ.get("CLARA_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared/data"
    add("--data", type=Path, default=Path(shared), metavar="DIR", help=f"holds {' and '.join(FILES.values())}")
    option(parser, "--output", "measurements; those that are there count", type=Path)
    command.add_renamed_option(parser, "--json", "--output", type=Path)
    option(parser, "--base", "smollm2", default="smollm2")
    option(parser, "--precision", "our best, beside float32; float32", choices=PRECISIONS, default="float32")
    add("--released-precision", choices=("auto", "bfloat16", "float32"), default="auto", help="what may be the other's "
        "best; auto is bfloat16 where its products are faster here than float32's")  # fmt: skip
    add("--cores", metavar="N,N", help="cores for both sides, and a thread for each (default: all)")
    add("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS], metavar="ROW",
        help="; ".join(row.name for row in ROWS))  # fmt: skip
    add("--scp-batch", type=int, default=4, metavar="N", help="records of a step of scp (4)")
    add("--batch", type=int, default=2, metavar="N", help="records of a step of end_to_end (2)")
    option(parser, "--candidates", "also those of compress; 20", default=20)
    option(parser, "--k", "5", default=5)
    option(parser, "--max-new-tokens", "32", default=32, dest="new_tokens")
    command.add_renamed_option(parser, "--new-tokens", "--max-new-tokens", type=int, dest="new_tokens")
    option(parser, "--repeats", "3", default=3)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
      ClaraError: a folder, interpreter or number that will not do, in words.
    """
    parsed = parser().parse_args(arguments)
    for name, option in {**COUNTS, "repeats": "--repeats"}.items():
        if getattr(parsed, name) < 1:
            raise ClaraError(f"{option} is {getattr(parsed, name)}; it must be at least 1")
    for name in (MODEL, BATCHES):
        if not (parsed.released / name).is_file():
            raise ClaraError(f"--released: {parsed.released} holds no {name}; name a checkout of apple/ml-clara")
    if not os.access(parsed.released_python, os.X_OK) or parsed.released_python.is_dir():
        raise ClaraError(
            f"--released-python: {parsed.released_python} is no program; name the interpreter of an environment with "
            f"{NEEDS}"
        )
    return parsed


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    cores = pin(arguments.cores)
    records = read(arguments.data, arguments)
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        inputs = Inputs(records, arguments, Path(name))

        @functools.cache
        def ours(precision: str) -> Ours:
            return Ours(opening.from_base(arguments.base, ClaraConfig(), mesh, precision), inputs)

        exporting.export_released(ours("float32").bundle, inputs.folder / "checkpoint")
        other = stack.enter_context(ReleasedProcess(arguments, inputs.folder, len(cores)))
        versions = {"jax": jax.__version__, **other.ask("versions")}
        options = {name: getattr(arguments, name) for name in ("base", *COUNTS)}
        found = Measurements(arguments.output, {"cores": len(cores)} | versions | options)
        found.save()  # so that a file that cannot be written fails before the measurements
        rates, best = other.ask("rates"), arguments.released_precision
        if best == "auto":
            best = max(rates, key=rates.get)
        print(
            f"{len(cores)} cores; {', '.join(f'{package} {version}' for package, version in versions.items())}; "
            f"PyTorch multiplies {', '.join(f'{dtype} at {rate / 1e9:.0f} GFLOP/s' for dtype, rate in rates.items())}, "
            f"its best is measured as {best}",
            flush=True,
        )
        busy = OtherLoad(cores, [other.process.pid])
        for row in (row for row in ROWS if row.name in arguments.rows):
            sides = {}
            for one, two in dict.fromkeys((("float32", "float32"), (best, arguments.precision))):
                sides[RELEASED, one] = functools.partial(row.released, other.ask, inputs, one)
                sides[OURS, two] = functools.partial(lambda row, two, turn: row.ours(ours(two), turn), row, two)
            measure(row, sides, found, arguments.repeats, functools.partial(print, flush=True))
        found.content["others"].append(busy.share())
        found.save()
    print(f"\n{table(found.content['seconds'])}\n")
    for row, text in found.content["agreement"].items():
        print(f"- {row}: {text}")
    print(f"- other work took {', '.join(f'{share:.0%}' for share in found.content['others'])} of the cores' time")


if __name__ == "__main__":
    command.run(main)
