"""The cores that a benchmark runs on, and the share of them that other processes took. Needs Linux."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from clara_jax.errors import ClaraError

_IDLE = (3, 4, 8, 9)  # of a line of /proc/stat: idle, iowait; guest and guest_nice are counted in user and nice


def pin(cores: str | None) -> tuple[int, ...]:
    """Bind this process, and all threads and processes that it starts from now on, to cores; return their numbers.

    XLA makes its pool of threads, one for each core it may use, when it is first asked for devices: call this before.

    Args:
      cores: "0,1"; None for all that the process may use already.

    Raises:
      ClaraError: not such a list, or cores that this process may not use.
    """
    allowed = os.sched_getaffinity(0)
    if cores is None:
        return tuple(sorted(allowed))
    try:
        chosen = {int(core) for core in cores.split(",")}
    except ValueError:
        raise ClaraError(f"--cores: {cores!r} must be numbers with commas between them, as 0,1") from None
    if not chosen <= allowed:
        raise ClaraError(f"--cores: {cores}: this process may use {', '.join(map(str, sorted(allowed)))}")
    os.sched_setaffinity(0, chosen)
    return tuple(sorted(chosen))


class OtherLoad:
    """The share of some cores' time that went to other processes, from when this was made.

    Args:
      processes: ids of processes that count as the benchmark's beside this one.
    """

    def __init__(self, cores: Iterable[int], processes: Iterable[int] = ()):
        self._cores, self._processes = tuple(cores), (os.getpid(), *processes)
        self._start = self._now()

    def share(self) -> float:
        """Return the share, from 0 to 1."""
        busy, all_time, ours = (after - before for after, before in zip(self._now(), self._start, strict=True))
        return min(1.0, max(0.0, busy - ours) / max(all_time, 1))

    def _now(self) -> tuple[int, int, int]:
        """Return the ticks that the cores were busy, all of their ticks, and those of the benchmark's processes."""
        busy = total = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name in {f"cpu{core}" for core in self._cores}:
                ticks = [int(field) for field in fields]
                busy += sum(value for place, value in enumerate(ticks) if place not in _IDLE)
                total += sum(ticks[:8])
        ours = 0
        for process in self._processes:
            # The name, in brackets, may hold anything; utime and stime are the 14th and 15th fields of all.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ours += int(fields[11]) + int(fields[12])
        return busy, total, ours
