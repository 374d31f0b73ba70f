"""Continuous batching: a row of the batch that ends is taken by the next request, while the others continue.

engine = Engine(model, params, mesh, end_ids)
handle = engine.submit(Request(ids, memory_index, memories))
while engine.step():
    print(handle.tokens)

An engine may be used by one thread at a time. With several processes all of them make the same calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.inference import programs
from clara_jax.inference import weights as ready
from clara_jax.inference.decode import DecodeState, Mode, prefill
from clara_jax.inference.prefix_cache import PrefixCache, key, split_at
from clara_jax.inference.requests import Request, RequestHandle, Result
from clara_jax.method.clara import ClaraModel
from clara_jax.model.cache import KVCache, empty
from clara_jax.model.sharding import BATCH, batch_shards, check_batch, place, put_batch

SEVERAL = 4  # prompts of a prefill, times the parts that the mesh splits a batch into; a single one runs alone
CACHE = 256  # the smallest number of slots of a row
STEPS = 8  # tokens of a row between two checks for new requests
PREFIX_BUDGET = 256 << 20  # bytes
MODES: tuple[Mode, ...] = ("greedy", "sample", "nucleus")  # each includes those before it


class Engine:
    """A continuous batching engine: up to ``rows`` requests are decoded together.

    Each has a separate length, limit and sampling. A single request runs through a program of one row, which is faster.

    Attributes:
      rows: the largest number of requests that are decoded together.
      weights: kind of the weights, see `clara_jax.inference.weights`.
      prefix_cache: keys and values of prefixes that requests share.
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
        """Prepare the weights; programs are compiled when they are first used, or by `warm_up`.

        Args:
          model: backbone and hyperparameters.
          params: the model's parameters, all roles.
          mesh: that the parameters are on.
          end_ids: tokens that end an answer.
          rows: a multiple of the parts that the mesh splits a batch into.
          weights: one of `clara_jax.inference.weights.WEIGHTS`; default the fastest that fits.
          steps: the most tokens of a row that a call of `step` decodes.
          prefix_budget: bytes that cached prefixes may take on the devices; 0 disables the prefix cache.

        Raises:
          ClaraError: unknown weights, rows that the mesh does not divide.
        """
        check_batch(rows, mesh, "rows")
        self.rows, self.weights = rows, weights or ready.choose(model, params, mesh)
        self._model, self._params = ready.prepare(model, params, self.weights, mesh, single_row=rows == 1)
        self._mesh, self._end_ids, self._steps = mesh, end_ids, steps
        self.prefix_cache, self._budget = PrefixCache(prefix_budget), prefix_budget
        self._waiting: deque[_QueuedRequest] = deque()
        self._running: list[RequestHandle | None] = []  # of each row; None where it is free
        self._cache: KVCache | None = None
        self._state: DecodeState | None = None

    @property
    def busy(self) -> int:
        """Number of rows that are taken."""
        return sum(handle is not None for handle in self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that have no row yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> RequestHandle:
        """Queue a request.

        Raises:
          ClaraError: see `check_request`.
        """
        check_request(self._model, request)
        handle = RequestHandle(request)
        rope = self._model.config.rope
        beyond = rope.kind == "longrope" and len(request.ids) > rope.original_positions
        self._waiting.append(_QueuedRequest(handle, self._budget > 0, beyond))
        return handle

    def step(self) -> bool:
        """Prefill prompts for which rows are free, or else decode some tokens; return False where nothing is left."""
        self._drop_cancelled()
        if self._waiting and self.busy < self.rows:
            self._admit()
        elif self.busy:
            self._advance()
        return bool(self._waiting or self.busy)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Return the results of all requests, in their order.

        Raises:
          ClaraError: see `submit`; nothing has been decoded then.
        """
        return run_to_end(self, requests)

    def warm_up(self, ask: Callable[[int], Request]) -> None:
        """Compile the programs for requests of a size: alone or together, with cached or new prefixes, while decoding.

        Args:
          ask: makes such a request of some tens of tokens; the prefix depends on the number.
        """
        for _ in range(2):  # the second time their prefixes are cached
            self._begin([ask(0)])
            self._begin([ask(number) for number in range(1, 1 + self.rows)])
        first = self.submit(ask(0))
        self.step()
        for number in (0, 1 + self.rows):
            self._begin([ask(number)])
        first.cancel()
        self._drop_cancelled()
        self.prefix_cache = PrefixCache(self._budget)

    def _begin(self, requests: Sequence[Request]) -> None:
        """Prefill prompts, decode the first tokens of their answers and cancel them."""
        handles = [self.submit(request) for request in requests]
        while self.waiting and self.busy < self.rows:
            self.step()
        self.step()
        for handle in handles:
            handle.cancel()
        self._drop_cancelled()

    # --- prefill ---

    def _admit(self) -> None:
        """Give rows to the first waiting request and to others that run through the same program."""
        for queued in self._waiting:
            queued.look_up(self.prefix_cache)
        shape = self._waiting[0].shape
        few = batch_shards(self._mesh)
        most = min(SEVERAL * few, self.rows)
        group = [queued for queued in self._waiting if queued.shape == shape][: min(self.rows - self.busy, most)]
        self._make_room(max(queued.slots(self._steps) for queued in group))
        free = [row for row, handle in enumerate(self._running) if handle is None]
        group = group[: len(free)]
        self._waiting = deque(queued for queued in self._waiting if queued not in group)
        source = np.full(len(self._running), -1, np.int32)
        for number, (queued, row) in enumerate(zip(group, free, strict=False)):
            source[row] = number
            self._running[row] = queued.handle
            queued.handle._admit()
        padded = group + [group[0]] * ((few if len(group) <= few else most) - len(group))
        hit = group[0].cached > 0
        with jax.set_mesh(self._mesh):
            prompts, sampling = self._prompts(padded)
            prefixes = (programs.stack(self._model, [self.prefix_cache[one.key] for one in padded]),) if hit else ()
            states, kv = prefill(self._model, self._params, *prompts, prefixes)
            self._cache, state = programs.insert(
                self._model,
                self._params,
                states,
                sampling,
                (*prefixes, kv),
                self._cache,
                self._state,
                place(source, jax.NamedSharding(self._mesh, jax.P(BATCH))),
                mode=_widest(queued.handle for queued in group),
                end_ids=self._end_ids,
            )
            self._state = state
            if not hit:
                self._cache_prefixes(group, kv)
            self.prefix_cache.count(hit, len(group))
        self._hand_out(np.asarray(gather(state.token))[:, None], [row for row in free if source[row] >= 0])

    def _prompts(self, group: Sequence[_QueuedRequest]) -> tuple[programs.Prompts, programs.SamplingArrays]:
        """Return prompts and sampling parameters of requests of one shape, on the devices."""
        requests = [queued.handle.request for queued in group]
        length = group[0].length
        ids, index = np.zeros((len(group), length), np.int32), np.full((len(group), length), -1, np.int32)
        mask = np.zeros(ids.shape, bool)
        count = group[0].memories
        vectors = (self._model.clara.memory_tokens, self._model.config.embed_dim)
        memories = np.zeros((len(group), count, *vectors), self._model.dtype)
        for row, (queued, request) in enumerate(zip(group, requests, strict=True)):
            rest = slice(queued.cached, len(request.ids))
            places = slice(rest.stop - rest.start)
            ids[row, places], mask[row, places] = request.ids[rest], True
            index[row, places] = request.memory_index[rest]
            if not queued.cached:  # memories of a cached prefix are not needed again
                memories[row, : len(request.memories)] = request.memories

        def each(dtype: type, value: str) -> np.ndarray:
            return np.array([getattr(request.sampling, value) for request in requests], dtype)

        seeds = np.array([request.seed % 2**32 for request in requests], np.uint32)
        sampling = each(np.int32, "max_new_tokens"), each(np.float32, "temperature"), each(np.float32, "top_p"), seeds
        prompts, sampling = put_batch(((ids, mask, index, memories), sampling), self._mesh)
        return programs.Prompts(*prompts), programs.SamplingArrays(*sampling)

    def _cache_prefixes(self, group: Sequence[_QueuedRequest], kv: KVCache) -> None:
        whole = jax.NamedSharding(self._mesh, jax.P())
        for row, queued in enumerate(group):
            if queued.prefix and queued.key not in self.prefix_cache:
                slots = min(bucket(queued.prefix), kv.slots)
                numbers = (place(np.asarray(number, np.int32), whole) for number in (row, queued.prefix))
                self.prefix_cache.add(queued.key, programs.first_slots(self._model, kv, *numbers, slots))

    def _make_room(self, slots: int) -> None:
        """Make free rows, and a cache with at least so many slots for each. While rows are taken, both only grow."""
        few = batch_shards(self._mesh)
        # Decoding one row takes as long as a few (all weights are read), but not as long as many.
        rows = few if self.busy + self.waiting <= few else self.rows
        slots = next_power(slots, CACHE)
        cache = self._cache
        with jax.set_mesh(self._mesh):
            if self.busy:
                assert cache is not None  # of the rows that are taken
                rows, slots = max(rows, len(self._running)), max(slots, cache.slots)
                if (rows, slots) != (len(self._running), cache.slots):
                    source = np.minimum(np.arange(rows), len(self._running) - 1)
                    source = place(source, jax.NamedSharding(self._mesh, jax.P(BATCH)))
                    self._cache, self._state = programs.resize(self._model, cache, self._state, source, slots)
                    self._running += [None] * (rows - len(self._running))
            elif cache is None or rows != len(self._running) or not slots <= cache.slots <= 4 * slots:
                cache = self._cache = None  # free it before the new one is made: there may be no room for both
                self._cache = empty(self._model.config, rows, slots, self._model.dtype)
                self._running, self._state = [None] * rows, self._ended_rows(rows)

    def _ended_rows(self, count: int) -> DecodeState:
        """Return the state of rows that are all free."""
        whole, real = np.zeros(count, np.int32), np.zeros(count, np.float32)
        arrays = whole, whole, whole, np.ones(count, bool), real, real, real, whole.astype(np.uint32)
        return DecodeState(*put_batch(arrays, self._mesh))

    # --- decoding ---

    def _advance(self) -> None:
        live = np.array([handle is not None for handle in self._running])
        with jax.set_mesh(self._mesh):
            self._cache, self._state, tokens = programs.advance(
                self._model,
                self._params,
                self._cache,
                self._state,
                place(live, jax.NamedSharding(self._mesh, jax.P(BATCH))),
                steps=self._steps,
                mode=_widest(handle for handle in self._running if handle is not None),
                end_ids=self._end_ids,
            )
        self._hand_out(gather(tokens), np.flatnonzero(live).tolist())

    def _hand_out(self, tokens: np.ndarray, rows: Iterable[int]) -> None:
        """Append the new tokens [B, steps] to the requests of the given rows, and free the rows that are done."""
        state = self._state
        assert state is not None  # the tokens are of its rows
        count, done, log_probability = gather((state.count, state.done, state.log_probability))
        for row in rows:
            handle = self._running[row]
            assert handle is not None  # only rows that are taken have new tokens
            new = tokens[row, : count[row] - len(handle.tokens)].tolist()
            stopped = bool(done[row]) and new[-1] in self._end_ids
            handle._grow(new[:-1] if stopped else new)
            if done[row]:
                handle._end("stop" if stopped else "length", float(log_probability[row]))
                self._running[row] = None

    def _drop_cancelled(self) -> None:
        waiting = [queued.handle for queued in self._waiting]
        for handle in waiting + [handle for handle in self._running if handle is not None]:
            if handle.cancelled and handle.result is None:
                handle._end("cancelled")
        self._waiting = deque(queued for queued in self._waiting if queued.handle.result is None)
        self._running = [None if handle is None or handle.cancelled else handle for handle in self._running]


def check_request(model: ClaraModel, request: Request) -> None:
    """Refuse a request that the model cannot answer.

    Raises:
      ClaraError: a prompt without tokens or with nothing but shared ones, memories of another shape, a memory index out
        of range, or more tokens than the base's positions.
    """
    length, limit = len(request.ids), model.config.max_positions
    vectors = (model.clara.memory_tokens, model.config.embed_dim)
    if not length or len(request.memory_index) != length:
        raise ClaraError(f"a prompt of {length} tokens and {len(request.memory_index)} memory indices")
    if not 0 <= request.shared < length:
        raise ClaraError(f"a prompt of {length} tokens of which {request.shared} are shared; one must be its own")
    if request.memories.ndim != 3 or request.memories.shape[1:] != vectors:
        raise ClaraError(f"memories of the shape {request.memories.shape}; [K, {vectors[0]}, {vectors[1]}] is needed")
    if max(request.memory_index) >= len(request.memories) * vectors[0]:
        raise ClaraError(f"a prompt with memory vector {max(request.memory_index)}; {len(request.memories)} memories")
    if length + request.sampling.max_new_tokens > limit:
        raise ClaraError(
            f"the prompt has {length} tokens and max_new_tokens is {request.sampling.max_new_tokens}: together "
            f"above the base's {limit} positions"
        )


class _QueuedRequest:
    """A waiting request, with the shapes of its prefill.

    Attributes:
      prefix: tokens of the prefix that other requests may share; 0 without one.
      key: of the prefix, see `prefix_cache.key`.
      cached: tokens of the prefix in the prefix cache: ``prefix`` or 0.
      length: the other tokens, rounded up to a bucket.
      memories: padded number of memories: as many as fit into a prompt of this length, so that their number needs no
        further programs; more where these are fewer vectors each, in proportion to the length.
      shape: requests of one shape run through one program.
    """

    def __init__(self, handle: RequestHandle, share: bool, beyond: bool):
        request = handle.request
        self.handle = handle
        self.prefix = max(split_at(request.memory_index), request.shared) if share else 0
        prefix = request.ids[: self.prefix], request.memory_index[: self.prefix], request.memories
        self.key = key(*prefix, beyond) if self.prefix else b""

    def look_up(self, prefix_cache: PrefixCache) -> None:
        """Set the attributes that depend on whether the prefix is cached."""
        hit = self.prefix and self.key in prefix_cache
        self.cached = self.prefix if hit else 0
        self._prefix_slots = prefix_cache[self.key].slots if hit else 0
        request = self.handle.request
        self.length = bucket(len(request.ids) - self.cached)
        # Memories beyond those that fit are not used in the prompt.
        fit = max(1, self.length // request.memories.shape[1])
        self.memories = 1 if hit or not len(request.memories) else next_power(len(request.memories), fit)
        self.shape = self.length, self._prefix_slots, self.memories

    def slots(self, steps: int) -> int:
        """Return the slots that it needs in the KV cache, those written after its last token included."""
        request = self.handle.request
        answered = len(request.ids) + request.sampling.max_new_tokens + steps
        return max(answered, self.cached + self.length, self._prefix_slots)


def _widest(handles: Iterable[RequestHandle]) -> Mode:
    """Return the mode that supports the sampling of all requests."""
    return MODES[max(MODES.index(handle.request.sampling.mode) for handle in handles)]


def bucket(number: int) -> int:
    """Return the next of 32, 64, 128, 192, 256, 384, ...

    Few shapes are compiled, and at most a third of a long row is padding.
    """
    size = next_power(number, 32)
    return size * 3 // 4 if number <= size * 3 // 4 and size > 128 else size


def next_power(number: int, least: int = 1) -> int:
    """Return the smallest of least, 2 · least, 4 · least, ... that is not below ``number``."""
    while least < number:
        least *= 2
    return least


class Stepped(Protocol):
    """An engine that is stepped: this one, or one whose answers another server writes."""

    def submit(self, request: Request) -> RequestHandle:
        """Queue a request."""
        ...

    def step(self) -> bool:
        """Go on with what is queued; return False where nothing is left."""
        ...

    def _drop_cancelled(self) -> None: ...


def run_to_end(engine: Stepped, requests: Sequence[Request]) -> list[Result]:
    """Return the results of all requests, in their order; see `Engine.generate`.

    Raises:
      ClaraError: of the first request that is refused or fails; the others are cancelled.
    """
    handles: list[RequestHandle] = []
    try:
        for number, request in enumerate(requests):
            try:
                handles.append(engine.submit(request))
            except ClaraError as error:
                raise ClaraError(f"prompt {number}: {error}") from None
        while any(handle.result is None for handle in handles):
            engine.step()
            for handle in handles:
                if handle.error is not None:
                    raise handle.error
    except BaseException:
        for handle in handles:
            handle.cancel()
        engine._drop_cancelled()
        raise
    return [handle.result for handle in handles if handle.result is not None]  # all have one
