"""Graceful stops: the first SIGTERM or Ctrl-C ends training after the step under way, with everything saved."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator


class Stopped(Exception):  # noqa: N818 - the end of a run that was asked for, no error
    """A run that was stopped by a signal; the message names its position and how to resume it."""


class StoppedAtOnce(Stopped):
    """A process that was stopped while there was nothing to save, without the run's other processes."""


class StopSignal:
    """A flag that is True as soon as the process has got a signal to stop.

    While `deferred`, a signal only sets the flag, which the caller polls; otherwise it raises `StoppedAtOnce`, since
    there is nothing to save. A second signal is an interrupt.
    """

    def __init__(self) -> None:
        self._received = False
        self._deferring = False

    def __call__(self) -> bool:
        """Return whether a signal to stop has come."""
        return self._received

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Have signals only set the flag inside the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Handle SIGTERM and SIGINT inside the block, and restore their handlers after it. Main thread only."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._receive) for number in signals]
        try:
            yield self
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = True
        if not self._deferring:
            raise StoppedAtOnce("stopped before the first step; nothing was to be saved, the same command starts again")
        print(f"{signal.Signals(number).name}: stopping as soon as all is saved", file=sys.stderr, flush=True)
