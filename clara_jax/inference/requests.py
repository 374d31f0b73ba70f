"""Requests to an engine: a prompt with its sampling, the handle of an answer that grows, and the result.

An engine alone calls the private methods of a handle.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling

Ended = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt with sampling parameters.

    Attributes:
      ids, memory_index: token ids, and which of the memory vectors stands at a token, -1 for text.
      memories: [K, M, E], K may be 0.
      sampling, seed: the same seed gives the same answer, whatever other requests are running.
      shared: length of a prefix that other requests are likely to share. The prefix up to the last memory vector is
        always treated as shared.
    """

    ids: Sequence[int]
    memory_index: Sequence[int]
    memories: np.ndarray
    sampling: Sampling = Sampling()
    seed: int = 0
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
      tokens: without the end token.
      log_probability: sum over all sampled tokens under the model, the end token included.
      ended: "stop" by an end token, "length" at ``max_new_tokens``, "cancelled" by the client.
      milliseconds: since submission, until it got a row ("queued"), its first token ("first"), and its end ("total").
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: Ended
    milliseconds: dict[str, float]


class RequestHandle:
    """A submitted request.

    Attributes:
      tokens: of the answer so far, without the end token.
      result: None until the answer has ended.
      error: why there will be no result, None where there will; of answers that another server writes.
    """

    def __init__(self, request: Request):
        self.request, self.tokens = request, list[int]()
        self.result: Result | None = None
        self.error: ClaraError | None = None
        self.cancelled = False
        self._submitted = time.perf_counter()
        self._admitted: float | None = None
        self._first: float | None = None

    def cancel(self) -> None:
        """Cancel the request; the engine drops it at the next step."""
        self.cancelled = True

    def finish(self) -> None:
        """End the answer here, as an end token does; the engine drops the request at the next step."""
        if self.result is None:
            self._end("stop")
        self.cancelled = True

    def _admit(self) -> None:
        self._admitted = time.perf_counter()

    def _grow(self, tokens: Iterable[int]) -> None:
        self._first = self._first or time.perf_counter()
        self.tokens += tokens

    def _end(self, ended: Ended, log_probability: float = 0.0) -> None:
        now = time.perf_counter()
        times = {"queued": self._admitted or now, "first": self._first or now, "total": now}
        milliseconds = {name: 1000 * (at - self._submitted) for name, at in times.items()}
        self.result = Result(tuple(self.tokens), log_probability, ended, milliseconds)
