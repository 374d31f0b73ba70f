"""Answers for requests that come and go: a row that ends is taken by the next request, while the others go on.

engine = Engine(model, params, mesh, end_ids)
ticket = engine.submit(Request(ids, memory_index, memories))
while engine.step():
    print(ticket.tokens)

Everything is for one thread at a time. With several processes all of them make the same calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.inference import programs
from clara_jax.inference import weights as ready
from clara_jax.inference.decode import Mode, Rows, Sampling
from clara_jax.inference.prefixes import Prefixes, key, split_at
from clara_jax.method.clara import ClaraModel
from clara_jax.model.cache import Past, empty
from clara_jax.model.sharding import BATCH, batch_shards, check_batch, place, put_batch

SEVERAL = 4  # prompts that are read together, of each part that the mesh splits a batch into; else one
CACHE = 256  # slots of a row that a cache has at least
STEPS = 8  # tokens of a row between two looks at what has come in
PREFIX_BUDGET = 256 << 20  # bytes
MODES: tuple[Mode, ...] = ("greedy", "sample", "nucleus")  # each can do what those before it can


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how its answer is written.

    Attributes:
      ids, memory_index: token ids, and which of the memory vectors stands at a token, -1 for text.
      memories: [K, M, E], K may be 0.
      sampling, seed: the same seed gives the same answer, whatever else is under way.
      shared: tokens of its beginning that other requests are likely to begin with too. Those up to the last memory
        vector always are.
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
      log_probability: of all chosen tokens under the model, the end token among them.
      ended: "stop" by an end token, "length" at ``max_new_tokens``, "cancelled" by the one who asked.
      milliseconds: waited for a row ("queued"), until the first token ("first"), and in all ("total").
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: Literal["stop", "length", "cancelled"]
    milliseconds: dict[str, float]


class Ticket:
    """A request on its way.

    Attributes:
      tokens: so far, without the end token.
      result: None until it is over.
    """

    def __init__(self, request: Request):
        self.request, self.tokens = request, list[int]()
        self.result: Result | None = None
        self.cancelled = False
        self._came = time.perf_counter()
        self._seated = self._first = None

    def cancel(self) -> None:
        """It leaves at the next step."""
        self.cancelled = True

    def finish(self) -> None:
        """Ends the answer here, as an end token does; it leaves at the next step."""
        if self.result is None:
            self._end("stop")
        self.cancelled = True

    def _seat(self) -> None:
        self._seated = time.perf_counter()

    def _grow(self, tokens: Iterable[int]) -> None:
        self._first = self._first or time.perf_counter()
        self.tokens += tokens

    def _end(self, ended: str, log_probability: float = 0.0) -> None:
        now = time.perf_counter()
        times = {"queued": self._seated or now, "first": self._first or now, "total": now}
        milliseconds = {name: 1000 * (at - self._came) for name, at in times.items()}
        self.result = Result(tuple(self.tokens), log_probability, ended, milliseconds)


class Engine:
    """Continuous batching: up to ``rows`` sequences are decoded together, each with its own length, limit and
    sampling. What is alone runs through a program of its own, which is faster.

    Attributes:
      rows: how many.
      weights: what answers are written with, see `clara_jax.inference.weights`.
      prefixes: beginnings of prompts that are kept.
    """

    def __init__(
        self,
        model: ClaraModel,
        params: Any,
        mesh: jax.sharding.Mesh,
        end_ids: tuple[int, ...],
        rows: int = 16,
        weights: str | None = None,
        steps: int = STEPS,
        prefix_budget: int = PREFIX_BUDGET,
    ):
        """
        Args:
          params: the model's, all roles.
          rows: a multiple of the parts that the mesh splits a batch into.
          weights: one of `clara_jax.inference.weights.WEIGHTS`; default what is fastest and fits.
          steps: tokens of a row that a call of `step` decodes at most.
          prefix_budget: bytes that kept beginnings of prompts may take on the devices; 0 keeps none.

        Raises:
          ClaraError: unknown weights, rows that the mesh does not divide.
        """
        check_batch(rows, mesh, "rows")
        self.rows, self.weights = rows, weights or ready.choose(model, params, mesh)
        self._model, self._params = ready.prepare(model, params, self.weights, mesh, alone=rows == 1)
        self._mesh, self._end_ids, self._steps = mesh, end_ids, steps
        self.prefixes, self._budget, self._shares = Prefixes(prefix_budget), prefix_budget, prefix_budget > 0
        self._waiting: deque[_Reader] = deque()
        self._seats: list[Ticket | None] = []
        self._past: Past | None = None
        self._state: Rows | None = None

    @property
    def busy(self) -> int:
        """Rows that are taken."""
        return sum(seat is not None for seat in self._seats)

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> Ticket:
        """Queues a request.

        Raises:
          ClaraError: a prompt without tokens or of shared ones alone, memories that do not belong to it, or more tokens
            than the base's positions.
        """
        length, limit = len(request.ids), self._model.config.max_positions
        vectors = (self._model.clara.memory_tokens, self._model.config.width)
        if not length or len(request.memory_index) != length:
            raise ClaraError(f"a prompt of {length} tokens and {len(request.memory_index)} memory indices")
        if not 0 <= request.shared < length:
            raise ClaraError(f"a prompt of {length} tokens of which {request.shared} are shared; one must be its own")
        if request.memories.ndim != 3 or request.memories.shape[1:] != vectors:
            raise ClaraError(
                f"memories of the shape {request.memories.shape}; [K, {vectors[0]}, {vectors[1]}] is needed"
            )
        if max(request.memory_index) >= len(request.memories) * vectors[0]:
            raise ClaraError(
                f"a prompt with memory vector {max(request.memory_index)}; {len(request.memories)} memories"
            )
        if length + request.sampling.max_new_tokens > limit:
            raise ClaraError(
                f"the prompt has {length} tokens and max_new_tokens is {request.sampling.max_new_tokens}: together "
                f"above the base's {limit} positions"
            )
        ticket = Ticket(request)
        rope = self._model.config.rope
        beyond = rope.kind == "longrope" and length > rope.original_positions
        self._waiting.append(_Reader(ticket, self._shares, beyond))
        return ticket

    def step(self) -> bool:
        """Reads prompts for which rows are free, or else decodes some tokens; False where nothing is left to do."""
        self._drop_cancelled()
        if self._waiting and self.busy < self.rows:
            self._admit()
        elif self.busy:
            self._advance()
        return bool(self._waiting or self.busy)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Answers of all, in their order.

        Raises:
          ClaraError: see `submit`; nothing has been decoded then.
        """
        tickets: list[Ticket] = []
        try:
            for number, request in enumerate(requests):
                try:
                    tickets.append(self.submit(request))
                except ClaraError as error:
                    raise ClaraError(f"prompt {number}: {error}") from None
            while any(ticket.result is None for ticket in tickets):
                self.step()
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            self._drop_cancelled()
            raise
        return [ticket.result for ticket in tickets]

    def warm_up(self, ask: Callable[[int], Request]) -> None:
        """Compiles the programs for requests of a size: alone, together, with beginnings that are known or new, and
        coming while another is written.

        Args:
          ask: makes such a request of some tens of tokens; other numbers, other beginnings.
        """
        for _ in range(2):  # the second time their beginnings are known
            self._begin([ask(0)])
            self._begin([ask(number) for number in range(1, 1 + self.rows)])
        first = self.submit(ask(0))
        self.step()
        for number in (0, 1 + self.rows):
            self._begin([ask(number)])
        first.cancel()
        self._drop_cancelled()
        self.prefixes = Prefixes(self._budget)

    def _begin(self, requests: Sequence[Request]) -> None:
        """Reads prompts, writes the first tokens of their answers and gives them up."""
        tickets = [self.submit(request) for request in requests]
        while self.waiting and self.busy < self.rows:
            self.step()
        self.step()
        for ticket in tickets:
            ticket.cancel()
        self._drop_cancelled()

    # --- reading prompts ---

    def _admit(self) -> None:
        """Seats the first request, and with it those that run through the same program."""
        for reader in self._waiting:
            reader.find(self.prefixes)
        shape = self._waiting[0].shape
        few = batch_shards(self._mesh)
        most = min(SEVERAL * few, self.rows)
        group = [reader for reader in self._waiting if reader.shape == shape][: min(self.rows - self.busy, most)]
        self._make_room(max(reader.slots(self._steps) for reader in group))
        free = [row for row, seat in enumerate(self._seats) if seat is None]
        group = group[: len(free)]
        self._waiting = deque(reader for reader in self._waiting if reader not in group)
        source = np.full(len(self._seats), -1, np.int32)
        for number, (reader, row) in enumerate(zip(group, free, strict=False)):
            source[row] = number
            self._seats[row] = reader.ticket
            reader.ticket._seat()
        padded = group + [group[0]] * ((few if len(group) <= few else most) - len(group))
        with jax.set_mesh(self._mesh):
            prompts, chosen = put_batch(self._prompts(padded), self._mesh)
            prefixes = (programs.stack(self._model, [self.prefixes[r.key] for r in padded]),) if group[0].found else ()
            states, kept = programs.read_prompts(self._model, self._params, prompts, prefixes)
            self._past, self._state = programs.seat(
                self._model,
                self._params,
                states,
                chosen,
                (*prefixes, kept),
                self._past,
                self._state,
                place(source, jax.NamedSharding(self._mesh, jax.P(BATCH))),
                mode=_widest(reader.ticket for reader in group),
                end_ids=self._end_ids,
            )
            if not group[0].found:
                self._keep(group, kept)
            self.prefixes.count(group[0].found > 0, len(group))
        self._hand_out(np.asarray(gather(self._state.token))[:, None], [row for row in free if source[row] >= 0])

    def _prompts(self, group: Sequence[_Reader]) -> tuple[programs.Prompts, programs.Choice]:
        requests = [reader.ticket.request for reader in group]
        length = group[0].length
        ids, index = np.zeros((len(group), length), np.int32), np.full((len(group), length), -1, np.int32)
        mask = np.zeros(ids.shape, bool)
        count = group[0].memories
        vectors = (self._model.clara.memory_tokens, self._model.config.width)
        memories = np.zeros((len(group), count, *vectors), self._model.dtype)
        for row, (reader, request) in enumerate(zip(group, requests, strict=True)):
            own = slice(reader.found, len(request.ids))
            places = slice(own.stop - own.start)
            ids[row, places], mask[row, places] = request.ids[own], True
            index[row, places] = request.memory_index[own]
            if not reader.found:  # memories in what was read before are not needed again
                memories[row, : len(request.memories)] = request.memories

        def each(dtype: type, value: str) -> np.ndarray:
            return np.array([getattr(request.sampling, value) for request in requests], dtype)

        seeds = np.array([request.seed % 2**32 for request in requests], np.uint32)
        chosen = each(np.int32, "max_new_tokens"), each(np.float32, "temperature"), each(np.float32, "top_p"), seeds
        return programs.Prompts(ids, mask, index, memories), programs.Choice(*chosen)

    def _keep(self, group: Sequence[_Reader], kept: Past) -> None:
        whole = jax.NamedSharding(self._mesh, jax.P())
        for row, reader in enumerate(group):
            if reader.prefix and reader.key not in self.prefixes:
                slots = min(_bucket(reader.prefix), kept.slots)
                numbers = (place(np.asarray(number, np.int32), whole) for number in (row, reader.prefix))
                self.prefixes.add(reader.key, programs.first_slots(self._model, kept, *numbers, slots))

    def _make_room(self, slots: int) -> None:
        """Seats, and a cache with so many slots for each. While seats are taken, both only grow."""
        few = batch_shards(self._mesh)
        # Reading all weights for a row takes as long as for a few, but not as long as for many.
        seats = few if self.busy + self.waiting <= few else self.rows
        slots = _power(slots, CACHE)
        with jax.set_mesh(self._mesh):
            if self.busy:
                seats, slots = max(seats, len(self._seats)), max(slots, self._past.slots)
                if (seats, slots) != (len(self._seats), self._past.slots):
                    source = np.minimum(np.arange(seats), len(self._seats) - 1)
                    source = place(source, jax.NamedSharding(self._mesh, jax.P(BATCH)))
                    self._past, self._state = programs.resize(self._model, self._past, self._state, source, slots)
                    self._seats += [None] * (seats - len(self._seats))
            elif self._past is None or seats != len(self._seats) or not slots <= self._past.slots <= 4 * slots:
                self._past = None  # before the new one is made: there may be no room for both
                self._past = empty(self._model.config, seats, slots, self._model.dtype)
                self._seats, self._state = [None] * seats, put_batch(_no_rows(seats), self._mesh)

    # --- decoding ---

    def _advance(self) -> None:
        live = np.array([seat is not None for seat in self._seats])
        with jax.set_mesh(self._mesh):
            self._past, self._state, tokens = programs.advance(
                self._model,
                self._params,
                self._past,
                self._state,
                place(live, jax.NamedSharding(self._mesh, jax.P(BATCH))),
                steps=self._steps,
                mode=_widest(seat for seat in self._seats if seat is not None),
                end_ids=self._end_ids,
            )
        self._hand_out(gather(tokens), np.flatnonzero(live))

    def _hand_out(self, tokens: np.ndarray, rows: Iterable[int]) -> None:
        """Gives rows their new tokens [B, steps], and frees the seats of those that are done."""
        state = self._state
        count, done, log_probability = gather((state.count, state.done, state.log_probability))
        for row in rows:
            ticket = self._seats[row]
            new = tokens[row, : count[row] - len(ticket.tokens)].tolist()
            stopped = bool(done[row]) and new[-1] in self._end_ids
            ticket._grow(new[:-1] if stopped else new)
            if done[row]:
                ticket._end("stop" if stopped else "length", float(log_probability[row]))
                self._seats[row] = None

    def _drop_cancelled(self) -> None:
        leaving = [reader.ticket for reader in self._waiting] + [ticket for ticket in self._seats if ticket is not None]
        for ticket in leaving:
            if ticket.cancelled and ticket.result is None:
                ticket._end("cancelled")
        self._waiting = deque(reader for reader in self._waiting if reader.ticket.result is None)
        self._seats = [None if ticket is None or ticket.cancelled else ticket for ticket in self._seats]


class _Reader:
    """A request that waits, and how its prompt is to be read.

    Attributes:
      prefix: tokens of its beginning, which other requests may share; 0 without one.
      key: of the beginning, see `prefixes.key`.
      found: how many tokens were read before: ``prefix`` or 0.
      length: slots of the tokens that are left to read.
      memories: places for its memories: as many as fit into a prompt of this length, so that their number makes no
        further programs.
      shape: requests of one shape run through one program.
    """

    def __init__(self, ticket: Ticket, shares: bool, beyond: bool):
        request = ticket.request
        self.ticket = ticket
        self.prefix = max(split_at(request.memory_index), request.shared) if shares else 0
        own = request.ids[: self.prefix], request.memory_index[: self.prefix], request.memories
        self.key = key(*own, beyond) if self.prefix else b""

    def find(self, prefixes: Prefixes) -> None:
        known = self.prefix and self.key in prefixes
        self.found = self.prefix if known else 0
        self._before = prefixes[self.key].slots if known else 0
        request = self.ticket.request
        self.length = _bucket(len(request.ids) - self.found)
        # More than fit are memories that the prompt does not name.
        fit = max(1, self.length // request.memories.shape[1])
        self.memories = 1 if known or not len(request.memories) else _power(len(request.memories), fit)
        self.shape = self.length, self._before, self.memories

    def slots(self, steps: int) -> int:
        """That it needs in a cache, what is written behind its last token included."""
        request = self.ticket.request
        answered = len(request.ids) + request.sampling.max_new_tokens + steps
        return max(answered, self.found + self.length, self._before)


def _no_rows(count: int) -> Rows:
    whole, real = np.zeros(count, np.int32), np.zeros(count, np.float32)
    return Rows(whole, whole, whole, np.ones(count, bool), real, real, real, whole.astype(np.uint32))


def _widest(tickets: Iterable[Ticket]) -> Mode:
    return max((ticket.request.sampling.mode for ticket in tickets), key=MODES.index)


def _bucket(number: int) -> int:
    """The next of 32, 64, 128, 192, 256, 384, ...: few shapes are compiled, and of what is long at most a third is
    padding."""
    size = _power(number, 32)
    return size * 3 // 4 if number <= size * 3 // 4 and size > 128 else size


def _power(number: int, least: int = 1) -> int:
    """The smallest of least, 2 · least, 4 · least, ... that is not below ``number``."""
    while least < number:
        least *= 2
    return least
