"""Goodput: how much of a run's time went into steps that count, and what the rest went into.

The time of every process that works on a run, from its start to its end, is split into the categories of `CATEGORIES`
without remainder. ``goodput.json`` in the run directory has it, and is written again every few seconds and with each
checkpoint, so that of a process that was killed no more than those are missing. What it did after the checkpoint that
the run goes on from is done again: the next process books it as "lost". The time between two processes belongs to
none.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import read_object
from clara_jax.training.run_directory import write_json

GOODPUT = "goodput.json"
# Words for each category, in the order of the report.
CATEGORIES = {
    "steps": "steps",
    "data": "waiting for data",
    "compiling": "compiling",
    "evaluating": "evaluating",
    "saving": "saving",
    "compressing": "compressing documents",
    "starting": "starting",
    "lost": "lost to restarts",
}
AGAIN = ("steps", "data", "evaluating", "saving")  # what is done again after a kill; compressed documents are kept
SECONDS = 10.0  # between two writes of the file
_REMEDY = "delete it; what the time before went into is then not known"
MOST = 100  # checkpoints of a process whose times are kept; a run goes on from one of the newest


class Goodput:
    """The clock of a process that works on a run: at every moment one category runs."""

    def __init__(
        self,
        path: Path,
        checkpoint: str | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ):
        """Go on with the run's record; the category "starting" runs.

        Args:
          path: the file.
          checkpoint: name of the one that the run goes on from, None at its beginning.
          enabled: False neither reads nor writes the file, for processes other than the main one.
          clock: seconds, monotonic.
          began: when the process began, by the clock; default now.

        Raises:
          ClaraError: the file cannot be read or written.
        """
        self._path, self._enabled, self._clock = path, enabled, clock
        self._earlier = settled(_read_processes(path) if enabled and path.exists() else [], checkpoint)
        self._running, self._since = ["starting"], clock() if began is None else began
        self._process: dict[str, Any] = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": dict.fromkeys(CATEGORIES, 0.0),
            "checkpoints": {},
        }
        self.write()

    @contextlib.contextmanager
    def measure(self, category: str) -> Iterator[None]:
        """Let a category run within the block, in place of the one around it."""
        self._count()
        self._running.append(category)
        try:
            yield
        finally:
            self._count()
            self._running.pop()
            if self._clock() - self._written > SECONDS:
                self.write()

    def move(self, category: str, seconds: float) -> None:
        """Count so many of the running category's last seconds to another one."""
        self._count()
        self._process["seconds"][self._running[-1]] -= seconds
        self._process["seconds"][category] += seconds

    def saved(self, checkpoint: str) -> None:
        """Note that what was done until now is in a checkpoint, by its name, and write it down.

        Raises:
          ClaraError: the disk refuses.
        """
        self._count()
        checkpoints = self._process["checkpoints"]
        checkpoints.pop(checkpoint, None)
        checkpoints[checkpoint] = dict(self._process["seconds"])
        if len(checkpoints) > MOST:
            del checkpoints[next(iter(checkpoints))]
        self.write()

    def write(self) -> None:
        """Write the file.

        Raises:
          ClaraError: the disk refuses.
        """
        self._count()
        self._written = self._clock()
        if self._enabled:
            processes = [*self._earlier, self._process]
            rounded = [one | {"seconds": _rounded(one["seconds"]), "checkpoints": _each(one)} for one in processes]
            write_json(self._path, {"processes": rounded} | self.total)

    @property
    def total(self) -> dict[str, Any]:
        """The sum over all processes: "seconds" by category, "wall" of them all, and "goodput", the steps' share."""
        return totals([*self._earlier, self._process])

    def line(self) -> str:
        """Return the total in one line."""
        self._count()
        return describe(self.total)

    def _count(self) -> None:
        now = self._clock()
        self._process["seconds"][self._running[-1]] += now - self._since
        self._since = now


def read_totals(path: Path) -> dict[str, Any]:
    """Return the totals in a file; see `Goodput.total`.

    Raises:
      ClaraError: the file cannot be read, or holds something else.
    """
    there = read_object(path, _REMEDY)
    numbers = there.get("wall"), there.get("goodput")
    if not _is_seconds(there.get("seconds")) or not all(isinstance(number, int | float) for number in numbers):
        raise ClaraError(f"{path}: is no record of goodput; {_REMEDY}")
    return there


def _read_processes(path: Path) -> list[dict[str, Any]]:
    processes = read_object(path, _REMEDY).get("processes", [])
    if not isinstance(processes, list) or not all(map(_is_process, processes)):
        raise ClaraError(f"{path}: is no record of goodput; {_REMEDY}")
    return processes


def _is_process(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("checkpoints"), dict):
        return False
    needed = {*AGAIN, "lost"}
    return all(_is_seconds(part) for part in (one.get("seconds"), *one["checkpoints"].values())) and needed <= set(
        one["seconds"]
    )


def _is_seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())


def settled(processes: list[dict[str, Any]], checkpoint: str | None) -> list[dict[str, Any]]:
    """Return earlier processes with what they did after a checkpoint booked as lost.

    Args:
      processes: in their order, as the file has them.
      checkpoint: name of the one that the run goes on from; None where it begins anew.
    """
    known = [number for number, one in enumerate(processes) if checkpoint in one["checkpoints"]]
    last = known[-1] if known else -1
    for number, one in enumerate(processes):
        if number < last:
            continue
        seconds = one["seconds"]
        kept = one["checkpoints"][checkpoint] if number == last else {}
        for category in AGAIN:
            lost = seconds[category] - min(seconds[category], kept.get(category, 0.0))
            seconds[category] -= lost
            seconds["lost"] += lost
    return processes


def totals(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of processes; see `Goodput.total`."""
    seconds = {name: sum(one["seconds"].get(name, 0.0) for one in processes) for name in CATEGORIES}
    wall = sum(seconds.values())
    return {
        "seconds": _rounded(seconds),
        "wall": round(wall, 3),
        "goodput": round(seconds["steps"] / wall, 4) if wall > 0 else 0.0,
    }


def describe(total: Mapping[str, Any]) -> str:
    """Return a total in one line."""
    parts = [f"{words} {total['seconds'][name]:,.1f} s" for name, words in CATEGORIES.items() if total["seconds"][name]]
    return f"goodput {total['goodput']:.1%} of {total['wall']:,.1f} s: {', '.join(parts)}"


def _each(process: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {name: _rounded(seconds) for name, seconds in process["checkpoints"].items()}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
