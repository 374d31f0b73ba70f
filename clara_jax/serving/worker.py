"""The one thread that owns a model: what clients ask for runs here, in turns with the tokens of all answers.

Model, store and engine are for one thread at a time. Coroutines hand their work over and are told of results on their
own loop; while answers are being written they take turns with everything else, so that neither holds up the other for
long.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from clara_jax.inference.engine import Engine, Request, Result, Ticket

logger = logging.getLogger(__name__)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a character that is not whole yet
_LEAST_TURN = 0.05  # seconds of other work between two steps of the engine


class Model(Protocol):
    """What answers: a library, or a base alone."""

    @property
    def engine(self) -> Engine: ...

    def text(self, tokens: Sequence[int]) -> str: ...


# Of the worker's model: what the engine is to answer, None for nothing, and what else is to be known of the answer.
Ask = Callable[..., tuple[Request | None, Any]]


class Full(Exception):
    """As many requests wait as may."""


class Stopping(Exception):
    """The server ends, and takes no more work."""


class Finished(NamedTuple):
    """The end of an answer: its whole text, and the engine's result."""

    text: str
    result: Result


class Answering:
    """An answer on its way to a coroutine: iterate over its pieces of text, the last item being `Finished`. Where the
    engine was asked nothing there are none.

    Attributes:
      request, about: see `Ask`.
    """

    def __init__(self, about: Any, ticket: Ticket | None, loop: asyncio.AbstractEventLoop, endings: Sequence[str] = ()):
        """
        Args:
          endings: texts, before the first of which the answer ends.
        """
        self.about, self._ticket, self._loop, self._endings = about, ticket, loop, endings
        self.request = None if ticket is None else ticket.request
        self._items: asyncio.Queue[str | Finished | Exception] = asyncio.Queue()
        self._said = ""

    async def __aiter__(self) -> AsyncIterator[str | Finished]:
        """Raises:
        Stopping: the server ended before the answer did."""
        while self._ticket is not None:
            item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Finished):
                return

    def cancel(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()

    def _tell(self, item: str | Finished | Exception) -> None:
        _on(self._loop, self._items.put_nowait, item)

    def _look(self, text: Callable[[list[int]], str]) -> bool:
        """Passes on what is new; whether the answer is over."""
        whole = text(self._ticket.tokens)
        place = min((at for at in map(whole.find, self._endings) if at >= 0), default=-1)
        if place >= 0:
            self._ticket.finish()
            whole = whole[:place]
        result = self._ticket.result
        if place >= 0 and result is not None:  # it may have ended in the same step by itself
            result = dataclasses.replace(result, ended="stop")
        # What was passed on cannot be taken back: half a character waits for its rest, and so does half an ending.
        sure = whole if result is not None else whole.rstrip(_REPLACEMENT)
        if result is None:
            sure = sure[: len(sure) - max((_begun(sure, ending) for ending in self._endings), default=0)]
        if len(sure) > len(self._said) and sure.startswith(self._said):
            self._tell(sure[len(self._said) :])
            self._said = sure
        if result is not None:
            self._tell(Finished(whole, result))
        return result is not None


def _begun(text: str, ending: str) -> int:
    """How many characters at the end of a text may be the beginning of an ending."""
    return next((n for n in range(min(len(ending) - 1, len(text)), 0, -1) if text.endswith(ending[:n])), 0)


class Worker:
    """Runs what is asked for, one thing after another, and steps the engine in between.

    Attributes:
      limit: requests that may be inside at one time, those being answered among them.
      rows: answers that are written together.
      prefixes: beginnings of prompts that the engine keeps.
    """

    def __init__(self, model: Model, queue: int):
        """
        Args:
          queue: requests that may wait for a row of the engine.
        """
        self._model, self.rows, self.prefixes = model, model.engine.rows, model.engine.prefixes
        self.limit = queue + self.rows
        self._jobs: deque[_Job] = deque()  # those that wait; changed under the condition, as is what is below
        self._job: _Job | None = None  # the one that is worked on
        self._answers: list[Answering] = []
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self.inside = 0  # changed by the loop's thread alone
        self._thread = threading.Thread(target=self._run, name="clara-worker", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def answering(self) -> int:
        """Answers that are being written or wait for a row."""
        return len(self._answers)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function(model, *arguments)`` gives; one that gives an iterator is run item by item, other work
        coming in between, and the items are returned as a list.

        Raises:
          Full, Stopping: it was not begun.
        """
        self._enter()
        try:
            return await self._do(function, *arguments)
        finally:
            self.inside -= 1

    async def ask(self, ask: Ask, endings: Sequence[str] = ()) -> Answering:
        """Begins to answer; `finish` it in any case.

        Args:
          endings: see `Answering`.

        Raises:
          Full, Stopping: it was not begun.
          ClaraError: see `Engine.submit`, and what is asked.
        """
        loop = asyncio.get_running_loop()

        def begin(model: Model) -> Answering:
            request, about = ask(model)
            ticket = None if request is None else model.engine.submit(request)
            answering = Answering(about, ticket, loop, endings)
            with self._changed:
                if self._ended:
                    raise Stopping
                if ticket is not None:
                    self._answers.append(answering)
            return answering

        self._enter()
        try:
            job = asyncio.ensure_future(self._do(begin))
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                # The client has gone: what comes of it is given up as soon as it is there.
                job.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().cancel())
                raise
        except BaseException:
            self.inside -= 1
            raise

    def finish(self, answering: Answering) -> None:
        """Frees the place of an answer, and gives the answer up where it is not over."""
        answering.cancel()
        self.inside -= 1

    def stop(self) -> None:
        """Takes no more work; what is inside goes on."""
        self._stopping = True

    def end(self) -> None:
        """Tells all who still wait `Stopping`, at once, and has the thread begin nothing more. What it is in the middle
        of, a program that is compiled, cannot be interrupted; see `join`."""
        with self._changed:
            self._stopping = self._ended = True
            waiting = [*self._jobs, *([self._job] if self._job else [])]
            answers = list(self._answers)
            self._jobs.clear()
            self._changed.notify()
        for job in waiting:
            _on(job.loop, job.fail, Stopping())
        for answering in answers:
            answering._tell(Stopping())

    def join(self, seconds: float) -> bool:
        """Waits for the thread to end after `end`; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _enter(self) -> None:
        if self._stopping:
            raise Stopping
        if self.inside >= self.limit:
            raise Full
        self.inside += 1

    async def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        job = _Job(function, arguments, asyncio.get_running_loop())
        with self._changed:
            if self._ended:
                raise Stopping
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.future
        finally:
            job.unwanted = True  # where nobody waits any more it need not begin

    # --- the thread ---

    def _run(self) -> None:
        try:
            while self._wait():
                began = time.monotonic()
                if self._answers:
                    self._step()
                share = max(_LEAST_TURN, time.monotonic() - began)
                until = time.monotonic() + share
                while (not self._answers or time.monotonic() < until) and (job := self._take()) is not None:
                    self._begin(job)
        except BaseException:
            logger.exception("the worker failed")
            raise
        finally:
            self.end()

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._answers or self._ended)
            return not self._ended

    def _take(self) -> _Job | None:
        with self._changed:
            self._job = self._jobs.popleft() if self._jobs and not self._ended else None
            return self._job

    def _step(self) -> None:
        self._model.engine.step()
        going = [own for own in self._answers if not own._look(self._model.text)]
        with self._changed:
            self._answers = going

    def _begin(self, job: _Job) -> None:
        try:
            if job.unwanted:
                return
            try:
                result = job.function(self._model, *job.arguments)
                if isinstance(result, Iterator):
                    result = self._all(result)
            except Exception as error:
                _on(job.loop, job.fail, error)
            else:
                _on(job.loop, job.succeed, result)
        finally:
            with self._changed:
                self._job = None

    def _all(self, items: Iterator[Any]) -> list[Any]:
        done = []
        for item in items:
            done.append(item)
            if self._answers:
                self._step()
            if self._ended:
                raise Stopping
        return done


class _Job:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], loop: asyncio.AbstractEventLoop):
        self.function, self.arguments, self.loop = function, arguments, loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.unwanted = False

    def succeed(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _on(loop: asyncio.AbstractEventLoop, call: Callable[..., Any], *arguments: Any) -> None:
    """Calls it on the loop, if that still runs."""
    with contextlib.suppress(RuntimeError):  # it has been closed
        loop.call_soon_threadsafe(call, *arguments)
