"""The one thread that owns a model: it runs clients' requests in turns with the engine's steps.

Model, store and engine are for one thread at a time. Coroutines hand their work over, and get results on their event
loop. While answers are decoded, steps of the engine and other work alternate, so that neither delays the other long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from clara_jax.errors import ClaraError
from clara_jax.inference.engine import Engine
from clara_jax.inference.remote_engine import RemoteEngine
from clara_jax.inference.requests import Request, RequestHandle, Result
from clara_jax.inference.streaming import TextStream

logger = logging.getLogger(__name__)
_LEAST_TURN = 0.05  # seconds of other work between two steps of the engine


class ServedModel(Protocol):
    """A model that a worker serves: a pipeline, or a base alone."""

    @property
    def engine(self) -> Engine | RemoteEngine:
        """The engine that decodes answers."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What requests that do not say otherwise are answered with, for `schema.Health`; it never changes."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Decode token ids."""
        ...


# A function of the worker's model: the engine's request, None to abstain, and further facts of the answer.
Ask = Callable[..., tuple[Request | None, Any]]


class QueueFullError(Exception):
    """The queue is full."""


class ServerStoppingError(Exception):
    """The server is stopping, and accepts no more work."""


class Finished(NamedTuple):
    """The last item of an answer: its whole text, and the engine's result."""

    text: str
    result: Result


class Answering:
    """An answer in progress, as an asynchronous iterator.

    Its items are pieces of text, and `Finished` is the last one. Where the model abstains there are none.

    Attributes:
      request: for the engine, see `Ask`.
      about: further facts, see `Ask`.
    """

    def __init__(
        self,
        about: Any,
        handle: RequestHandle | None,
        loop: asyncio.AbstractEventLoop,
        decode: Callable[[list[int]], str],
        endings: Sequence[str] = (),
    ):
        """Make an answer for a submitted request.

        Args:
          about: further facts, see `Ask`.
          handle: of the request; None where the model abstains.
          loop: of the coroutine that reads the answer.
          decode: see `TextStream`.
          endings: see `TextStream`.
        """
        self.about, self._handle, self._loop = about, handle, loop
        self.request = None if handle is None else handle.request
        self._stream = None if handle is None else TextStream(handle, decode, endings)
        self._items: asyncio.Queue[str | Finished | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[str | Finished]:
        """Yield the answer's items.

        Raises:
          ServerStoppingError: the server ended before the answer did.
          ClaraError: the answer has failed, see `RequestHandle.error`.
        """
        while self._handle is not None:
            item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Finished):
                return

    def cancel(self) -> None:
        """Cancel the engine's request, if it has one."""
        if self._handle is not None:
            self._handle.cancel()

    def _put(self, item: str | Finished | Exception) -> None:
        on_loop(self._loop, self._items.put_nowait, item)

    def _update(self) -> bool:
        """Pass on new text, or the error of an answer that has failed, and return whether the answer is finished."""
        stream = self._stream
        assert stream is not None  # the worker keeps only answers of the engine
        try:
            piece = stream.update()
        except ClaraError as error:
            self._put(error)
            return True
        if piece:
            self._put(piece)
        if stream.result is not None:
            self._put(Finished(stream.whole, stream.result))
        return stream.result is not None


class Worker:
    """A thread that runs jobs one after another, and steps the engine in between.

    Attributes:
      limit: the largest number of requests inside the server, those being answered included.
      rows: answers that are decoded together.
      prefix_cache: the engine's prefix cache.
      defaults: see `ServedModel`.
    """

    def __init__(self, model: ServedModel, queue: int, prepare: Callable[[], None] | None = None):
        """Start the thread.

        Args:
          model: owned by the thread from now on.
          queue: requests that may wait for a row of the engine.
          prepare: called in the thread before anything else; requests that come meanwhile wait.
        """
        self._model, self.rows, self.prefix_cache = model, model.engine.rows, model.engine.prefix_cache
        self.limit, self.defaults = queue + self.rows, model.defaults
        self._jobs: deque[_Job] = deque()  # waiting; this and the next lines are changed under the condition
        self._job: _Job | None = None  # the running one
        self._answers: list[Answering] = []
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self._prepare = prepare
        self.inside = 0  # changed by the event loop's thread alone
        self._thread = threading.Thread(target=self._run, name="clara-worker", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether new work is refused."""
        return self._stopping

    @property
    def preparing(self) -> bool:
        """Whether requests wait for what is done before the first of them."""
        return self._prepare is not None

    @property
    def answering(self) -> int:
        """The number of answers that are being decoded or wait for a row."""
        return len(self._answers)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(model, *arguments)``, called in the worker's thread.

        An iterator is run item by item, with steps of the engine in between, and its items are returned as a list.

        Raises:
          QueueFullError: it was not begun.
          ServerStoppingError: it was not begun, or not finished.
        """
        self._enter()
        try:
            return await self._do(function, *arguments)
        finally:
            self.inside -= 1

    async def ask(self, ask: Ask, endings: Sequence[str] = ()) -> Answering:
        """Begin an answer; the caller must `finish` it in any case.

        Args:
          ask: makes the engine's request.
          endings: see `TextStream`.

        Raises:
          QueueFullError: it was not begun.
          ServerStoppingError: it was not begun.
          ClaraError: see `Engine.submit`; an error of ``ask``.
        """
        loop = asyncio.get_running_loop()

        def begin(model: ServedModel) -> Answering:
            request, about = ask(model)
            handle = None if request is None else model.engine.submit(request)
            answering = Answering(about, handle, loop, model.text, endings)
            with self._changed:
                if self._ended:
                    raise ServerStoppingError
                if handle is not None:
                    self._answers.append(answering)
            return answering

        self._enter()
        try:
            job = asyncio.ensure_future(self._do(begin))
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                # The client has disconnected: the answer is cancelled as soon as it exists.
                job.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().cancel())
                raise
        except BaseException:
            self.inside -= 1
            raise

    def finish(self, answering: Answering) -> None:
        """Free the slot of an answer, and cancel the answer where it is not finished."""
        answering.cancel()
        self.inside -= 1

    def stop(self) -> None:
        """Refuse new work; requests inside the server go on."""
        self._stopping = True

    def end(self) -> None:
        """Fail all waiting requests with `ServerStoppingError` at once, and let the thread begin no more work.

        A running job, such as the compilation of a program, cannot be interrupted; see `join`.
        """
        with self._changed:
            self._stopping = self._ended = True
            waiting = [*self._jobs, *([self._job] if self._job else [])]
            answers = list(self._answers)
            self._jobs.clear()
            self._changed.notify()
        for job in waiting:
            on_loop(job.loop, job.fail, ServerStoppingError())
        for answering in answers:
            answering._put(ServerStoppingError())

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after `end`, and return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _enter(self) -> None:
        if self._stopping:
            raise ServerStoppingError
        if self.inside >= self.limit:
            raise QueueFullError
        self.inside += 1

    async def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        job = _Job(function, arguments, asyncio.get_running_loop())
        with self._changed:
            if self._ended:
                raise ServerStoppingError
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.future
        finally:
            job.unwanted = True  # a job whose caller has left need not begin

    # --- the thread ---

    def _run(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
                self._prepare = None
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
        going = [answering for answering in self._answers if not answering._update()]
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
                on_loop(job.loop, job.fail, error)
            else:
                on_loop(job.loop, job.succeed, result)
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
                raise ServerStoppingError
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


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., Any], *arguments: Any) -> None:
    """Schedule a call on the event loop, if it is still open."""
    with contextlib.suppress(RuntimeError):  # it has been closed
        loop.call_soon_threadsafe(call, *arguments)
