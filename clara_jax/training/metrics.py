"""What a run says about itself: metrics as JSON lines, a progress bar, tokens per second."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from clara_jax.errors import ClaraError


class MetricWriter:
    """Appends one JSON object a line to a file and flushes it, so that a killed run loses no step.

    Values may be numbers, strings, bools, None, and arrays of one element (reading one waits for the device). JSON
    knows no non-finite numbers: they become the strings "nan", "inf" and "-inf".

    Args:
      path: the file; made with its directory where absent. A last line that a crash left half-written is removed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps({name: _plain(value) for name, value in values.items()}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines that a `MetricWriter` wrote, non-finite strings as floats again.

    Raises:
      ClaraError: a missing file or a line that is no JSON object.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ClaraError(f"{path}: cannot read metrics: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({name: _number(value) for name, value in row.items()})
        except (ValueError, AttributeError) as error:
            raise ClaraError(f"{path}:{number}: not a JSON object") from error
    return rows


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # numpy or jax, of one element
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


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
        """Says that ``units`` more are done, now."""
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
    """How far a stage is: a bar with loss, tokens per second and time left; lines where there is no terminal.

    Away from a terminal (a log file, a job system) a line is written for the first step, the last, and at most every
    ``seconds`` in between.

    Args:
      total: steps.
      name: of the stage.
      stream: where to write; standard error by default.
      seconds: time between lines without a terminal.
      enabled: False writes nothing.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        name: str,
        *,
        stream: TextIO | None = None,
        seconds: float = 30.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.name, self.step = total, name, 0
        self._stream = sys.stderr if stream is None else stream
        self._seconds, self._clock, self._last_line = seconds, clock, -math.inf
        self._tokens, self._steps = Throughput(clock=clock), Throughput(clock=clock)
        self._enabled = enabled
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(total=total, desc=name, unit="step", file=self._stream, dynamic_ncols=True)

    @property
    def tokens_per_second(self) -> float | None:
        return self._tokens.rate

    @property
    def seconds_left(self) -> float | None:
        """At the recent pace; None before it is known."""
        pace = self._steps.rate
        return (self.total - self.step) / pace if pace else None

    def update(self, *, loss: float | None = None, tokens: int = 0) -> None:
        """One step more. ``loss`` is a host number: pass the step before's, so that nothing waits for the device."""
        self.step += 1
        self._steps.add(1)
        self._tokens.add(tokens)
        if not self._enabled:
            return
        facts = [] if loss is None else [f"loss {loss:.4f}"]
        if self.tokens_per_second is not None:
            facts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self._bar is not None:  # the bar itself shows the time left
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
            self._bar.update()
            return
        now = self._clock()
        if self.step in (1, self.total) or now - self._last_line >= self._seconds:
            self._last_line = now
            if self.seconds_left is not None:
                facts.append(f"{tqdm.format_interval(self.seconds_left)} left")
            print(f"{self.name} {self.step}/{self.total}", *facts, sep="  ", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
