"""Reports of a run: metrics as JSON lines and for TensorBoard, memory, a progress bar and its rates."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import jax
from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse

if sys.platform != "win32":
    import resource


class MetricWriter:
    """A file of metrics, one JSON object a line, flushed after each, so that a killed run loses no step.

    Values may be numbers, strings, bools, None, and arrays of one element (reading one waits for the device). JSON
    knows no non-finite numbers: they become the strings "nan", "inf" and "-inf".

    Args:
      path: the file; made with its directory where absent. A last line that a crash left half-written is removed.
      tensorboard: a directory for TensorBoard events. The numbers of every row with a "step" go there, under
        "<stage>/<name>" and the stage's step. They mirror the file: what an earlier writer left in the directory
        is replaced by the rows that the file holds.
      keep_bytes: cut the file to this length first (a `sync` of an earlier writer), for a run that repeats the steps
        after it.

    Raises:
      ClaraError: the file or the events cannot be written.

    Warns:
      on standard error, if the file is shorter than ``keep_bytes``: rows are lost, and the run can go on without them.
    """

    def __init__(self, path: str | Path, tensorboard: Path | None = None, keep_bytes: int | None = None):
        self.path = Path(path)
        self._events = None
        with self._disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
            self._cut(keep_bytes)
            if tensorboard is not None:
                self._events = _Events(tensorboard)
                for row in read_metrics(self.path):
                    self._events.write(row)
                self._events.flush()

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
          ClaraError: the file or the events cannot be written.
        """
        row = {name: _plain(value) for name, value in values.items()}
        with self._disk():
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
            if self._events is not None:
                self._events.write({name: _number(value) for name, value in row.items()})

    def sync(self) -> int:
        """Wait until the disk holds every row; return the file's length in bytes."""
        with self._disk():
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file and the events."""
        with self._disk():
            self._file.close()
            if self._events is not None:
                self._events.close()

    def _cut(self, keep_bytes: int | None) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if keep_bytes is not None and size < keep_bytes:
            lost = f"it has {size} bytes where the checkpoint knew {keep_bytes}"
            print(f"{self.path}: rows of earlier steps are missing ({lost}); going on", file=sys.stderr, flush=True)
        self._file.truncate(size if keep_bytes is None else min(size, keep_bytes))
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ClaraError(
                f"{self.path}: metrics cannot be written: {error.strerror or error}; make room or choose another "
                "--workdir, and give the command again"
            ) from error

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class NoMetricWriter:
    """A `MetricWriter` that drops its rows, for processes other than the main one."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Drop a row."""

    def sync(self) -> int:
        """Return 0, the length of a file that is never written."""
        return 0

    def __enter__(self) -> NoMetricWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Events:
    """TensorBoard's scalars, one event a row; flushed every few seconds, since a flush waits for the disk."""

    SECONDS = 5.0

    def __init__(self, directory: Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] - made at import

        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        # The plain writer: the usual SummaryWriter changes the "@" of recall@1, and its thread hangs on a full disk.
        self._writer = EventsWriter(str(directory / "events"))
        # A TensorBoard that is open forgets the rows it has seen of files that are gone.
        session = SessionLog(status=SessionLog.SessionStatus.START)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=session))
        self.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made at import
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - made at import

        if "step" not in row:
            return
        numbers = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        prefix = f"{row['stage']}/" if "stage" in row else ""
        summary = Summary(value=[Summary.Value(tag=prefix + name, simple_value=x) for name, x in numbers.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=int(row["step"]), summary=summary))
        if time.monotonic() - self._flushed > self.SECONDS:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows that a `MetricWriter` wrote, non-finite strings as floats again.

    Raises:
      ClaraError: a missing file or a line that is no JSON object.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ClaraError(f"{path}: cannot read metrics: {error.strerror}") from error
    return [parse_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def parse_row(line: str | bytes, where: str | Path) -> dict[str, Any]:
    """Return the row in a line of a metrics file.

    Raises:
      ClaraError: it is no JSON object; ``where`` begins the message.
    """
    try:
        return {name: _number(value) for name, value in parse(line).items()}
    except (ValueError, AttributeError) as error:
        raise ClaraError(f"{where}: not a JSON object") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # numpy or jax, of one element
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def device_memory() -> dict[str, float]:
    """Return the memory in use, in GiB.

    It is "host_peak_gib", the most this process has held, but on Windows; and, where the platform reports them (GPU,
    TPU), "device_peak_gib" and "device_in_use_gib" of the fullest local device.
    """
    memory: dict[str, float] = {}
    if sys.platform != "win32":
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        memory["host_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (("device_peak_gib", "peak_bytes_in_use"), ("device_in_use_gib", "bytes_in_use")):
        known = [device[key] for device in stats if key in device]
        if known:
            memory[name] = max(known) / 2**30
    return {name: round(value, 3) for name, value in memory.items()}


class Throughput:
    """A rate over the last steps, in units (tokens, say) per second.

    The time before the first `add` is not counted: it went into compilation.

    Args:
      window: steps that the rate is taken over.
      clock: seconds, monotonic.
    """

    def __init__(self, window: int = 20, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self.total = 0

    def add(self, units: int) -> None:
        """Count ``units`` more as done now."""
        self.total += int(units)
        self._marks.append((self._clock(), self.total))

    @property
    def rate(self) -> float | None:
        """Units per second; None before the second `add`."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start else None


class Progress:
    """The progress of a stage: a bar with loss, tokens per second and time left; lines where there is no terminal.

    That of a shorter work inside one, an evaluation, is ``brief``: a bar that goes again, or lines without the first.

    Away from a terminal (a log file, a job system) a line is written for the first step, the last, and at most every
    ``seconds`` in between.

    Args:
      total: steps.
      name: of the stage or the work.
      start: steps that were done before, by a run that this one goes on from.
      stream: where to write; standard error by default.
      seconds: time between lines without a terminal.
      enabled: False writes nothing.
      clock: seconds, monotonic.
      devices: that share the work.
      peak_flops: of one of them, a second; None where it is not known.
      brief: write nothing of work that takes less than a second on a terminal, ``seconds`` elsewhere.
    """

    def __init__(
        self,
        total: int,
        name: str,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        seconds: float = 30.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        devices: int = 1,
        peak_flops: float | None = None,
        brief: bool = False,
    ):
        self.total, self.name, self.step, self._first = total, name, start, start + 1
        self._stream = sys.stderr if stream is None else stream
        self._seconds, self._clock, self._last_line = seconds, clock, clock() if brief else -math.inf
        self._tokens, self._steps, self._flops = (Throughput(clock=clock) for _ in range(3))
        self._devices, self._peak_flops = devices, peak_flops
        self._enabled, self._brief = enabled, brief
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                desc=name,
                unit="batch" if brief else "step",
                leave=not brief,
                delay=1.0 if brief else 0.0,
                file=self._stream,
                dynamic_ncols=True,
            )

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second over the last steps; None before they are known."""
        return self._tokens.rate

    @property
    def mfu(self) -> float | None:
        """Model FLOPs a second as a share of what the devices could do at best; None where that is not known."""
        if self._peak_flops is None or self._flops.rate is None:
            return None
        return self._flops.rate / (self._devices * self._peak_flops)

    @property
    def rates(self) -> dict[str, float | None]:
        """Rates over the last steps; None before they are known.

        They are "tokens_per_second", "tokens_per_second_per_device" and, of devices whose peak is known, "mfu".
        """
        tokens = self.tokens_per_second
        rates = {"tokens_per_second": tokens}
        rates["tokens_per_second_per_device"] = None if tokens is None else tokens / self._devices
        return rates if self._peak_flops is None else rates | {"mfu": self.mfu}

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the recent rate; None before it is known."""
        rate = self._steps.rate
        return (self.total - self.step) / rate if rate else None

    def update(self, *, loss: float | None = None, tokens: int = 0, flops: int = 0) -> None:
        """Count one step more, and show it.

        Args:
          loss: a host number: that of the step before, so that nothing waits for the device.
          tokens: of the step.
          flops: of the step.
        """
        self.step += 1
        self._steps.add(1)
        self._tokens.add(tokens)
        self._flops.add(flops)
        if not self._enabled:
            return
        facts = [] if loss is None else [f"loss {loss:.4f}"]
        if self.tokens_per_second:  # an evaluation counts none
            facts.append(f"{self.tokens_per_second:,.0f} tokens/s")
            if self._devices > 1:
                facts.append(f"{self.tokens_per_second / self._devices:,.0f} a device")
        if self.mfu is not None:
            facts.append(f"MFU {self.mfu:.1%}")
        if self._bar is not None:  # the bar itself shows the time left
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
            self._bar.update()
            return
        now = self._clock()
        ends = self.step in (self._first, self.total) and not self._brief
        if ends or now - self._last_line >= self._seconds:
            self._last_line = now
            if self.seconds_left is not None:
                facts.append(f"{tqdm.format_interval(self.seconds_left)} left")
            print(f"{self.name} {self.step}/{self.total}", *facts, sep="  ", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
