"""Being told to stop: the first SIGTERM or Ctrl-C is a wish that training grants behind a step, all saved."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator


class Stopped(Exception):
    """The run was told to stop and did; the message says where it is and how to go on."""


class StoppedAtOnce(Stopped):
    """This process was told to stop while there was nothing to save; other processes of the run were not asked."""


class StopSignal:
    """True as soon as the process was told to stop.

    While `deferred`, a signal only sets it, and the one who defers looks; otherwise it raises `StoppedAtOnce`, for then
    there is nothing to save. A second signal is an interrupt.
    """

    def __init__(self) -> None:
        self._received = False
        self._deferring = False

    def __call__(self) -> bool:
        return self._received

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Takes SIGTERM and SIGINT over; gives them back at the end. Main thread only."""
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
