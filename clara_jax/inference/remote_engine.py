"""An engine whose answers another server writes; it is used as `clara_jax.inference.engine.Engine` is.

engine = RemoteEngine(model, params, mesh, tokenizer.total_vocab, end_ids, GeneratorServer("http://gpu:8000"))
handle = engine.submit(Request(ids, memory_index, memories))
while engine.step():
    print(handle.tokens)

Prompts are embedded here, from the base's table and the added rows. A thread waits for the server for each answer; all
else happens in the thread that calls.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.inference.decode import Sampling, prefill
from clara_jax.inference.engine import bucket, check_request, next_power, run_to_end
from clara_jax.inference.generator_server import GeneratorServer, GeneratorServerError, Piece
from clara_jax.inference.prefix_cache import PrefixCache
from clara_jax.inference.requests import Request, RequestHandle, Result
from clara_jax.input_pipeline import prompts
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import splice
from clara_jax.model.sharding import batch_shards, put_batch
from clara_jax.model.transformer import join_logits

_TURN = 0.05  # seconds that a step waits for the server
_DIFFERENT = 0.5  # of two log-probabilities; those of one model in float32 and bfloat16 are nearer by far


class RemoteEngine:
    """An engine that sends up to ``rows`` prompts at a time to a server, which batches them as it can.

    Attributes:
      rows: the largest number of requests that are sent together.
      server: where to.
      prefix_cache: empty; the server caches prefixes itself.
    """

    def __init__(
        self,
        model: ClaraModel,
        params: Any,
        mesh: jax.sharding.Mesh,
        vocab_size: int,
        end_ids: tuple[int, ...],
        server: GeneratorServer,
        rows: int = 16,
    ):
        """Prepare the embedding of prompts.

        Args:
          model: backbone and hyperparameters.
          params: the model's parameters; the base's embeddings and the added rows are read.
          mesh: that the parameters are on.
          vocab_size: number of tokens, the added ones included.
          end_ids: tokens that end an answer.
          server: with the merged export of this model.
          rows: the largest number of requests that are sent together.

        Raises:
          ClaraError: the server serves another model, as far as it says.
        """
        server.check(model.config.embed_dim, vocab_size)
        self.rows, self.server, self.prefix_cache = rows, server, PrefixCache(0)
        embedding = {"base": {"embed": params["base"]["embed"]}, "tokens": params["tokens"]}
        self._model, self._params, self._mesh = model, embedding, mesh
        self._vocab_size, self._end_ids = vocab_size, end_ids
        self._waiting: deque[RequestHandle] = deque()
        self._running: list[RequestHandle] = []
        # What the threads have received.
        self._received: SimpleQueue[tuple[RequestHandle, Piece | ClaraError]] = SimpleQueue()
        self._log_probabilities: dict[RequestHandle, float] = {}

    @classmethod
    def open(cls, bundle: Bundle, params: Any, server: GeneratorServer, rows: int) -> RemoteEngine:
        """Return an engine for a model, after its server has answered a test prompt as the model here does (`check`).

        Args:
          bundle: the model.
          params: its parameters, all roles.
          server: with the merged export of this model.
          rows: the largest number of requests that are sent together.

        Raises:
          ClaraError: see `RemoteEngine` and `check`.
        """
        tokenizer, model = bundle.tokenizer, bundle.model
        engine = cls(model, params, bundle.mesh, tokenizer.total_vocab, bundle.end_ids, server, rows)
        prompt = tokenizer.encode_prompt(prompts.question("What is it?", 0))
        nothing = np.zeros((0, model.clara.memory_tokens, model.config.embed_dim), model.dtype)
        engine.check(params, Request(prompt.ids, prompt.memory_index, nothing))
        return engine

    @property
    def busy(self) -> int:
        """Number of requests that are at the server."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that have not been sent yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> RequestHandle:
        """Queue a request.

        Raises:
          ClaraError: see `clara_jax.inference.engine.check_request`.
        """
        check_request(self._model, request)
        handle = RequestHandle(request)
        self._waiting.append(handle)
        return handle

    def step(self) -> bool:
        """Send what is waiting, and take what has come, after a short wait for it; return False where nothing is left.

        A request that fails has a `RequestHandle.error`; others go on.
        """
        self._drop_cancelled()
        while self._waiting and self.busy < self.rows:
            self._send(self._waiting.popleft())
        if self._running:
            try:
                self._take(*self._received.get(timeout=_TURN))
                while True:
                    self._take(*self._received.get_nowait())
            except Empty:
                pass
        return bool(self._waiting or self._running)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Return the results of all requests, in their order.

        Raises:
          ClaraError: see `submit` and `GeneratorServer.pieces`, of the first request that fails.
        """
        return run_to_end(self, requests)

    def check(self, params: Any, request: Request) -> None:
        """Have the first token of an answer written there and here, and warn where their probabilities differ.

        Args:
          params: the model's parameters, all roles.
          request: a short prompt.

        Raises:
          ClaraError: see `GeneratorServer.pieces`; a token that the model here does not have.
        """
        prompt = self._arrays(request)
        handle = self.submit(dataclasses.replace(request, sampling=Sampling(1)))
        while self.step():
            pass
        if handle.error is not None:
            raise handle.error
        assert handle.result is not None  # it has ended
        token = handle.tokens[0] if handle.tokens else self._end_ids[0]
        with jax.set_mesh(self._mesh):
            here = float(gather(_log_probabilities(self._model, params, *put_batch(prompt, self._mesh)))[0, token])
        if abs(here - handle.result.log_probability) > _DIFFERENT:
            message = (
                f"{self.server.url}: gives a test prompt's next token the log-probability "
                f"{handle.result.log_probability:.2f}, and the model here {here:.2f}; is what it serves the export of "
                "this checkpoint (--format merged), not quantized?"
            )
            warnings.warn(message, ClaraWarning, stacklevel=2)

    def warm_up(self, ask: Callable[[int], Request]) -> None:
        """Compile the embedding of prompts of a size.

        Args:
          ask: makes such a request.
        """
        self.embed(ask(0))

    def embed(self, request: Request) -> Float[np.ndarray, "T E"]:
        """Return the embeddings of a prompt [T, E] in the dtype of the activations, with memories in their places."""
        ids, _, index, memories = put_batch(self._arrays(request), self._mesh)
        with jax.set_mesh(self._mesh):
            whole = _splice(self._model, self._params, ids, index, memories)
            return np.asarray(gather(whole))[0, : len(request.ids)]

    def _arrays(self, request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, mask and memory index [B, T] and memories [B, K, M, E], of which the first row has the prompt."""
        length, rows = len(request.ids), batch_shards(self._mesh)
        shape = rows, bucket(length)
        ids, mask, index = np.zeros(shape, np.int32), np.zeros(shape, bool), np.full(shape, -1, np.int32)
        ids[0, :length], mask[0, :length], index[0, :length] = request.ids, True, request.memory_index
        vectors = self._model.clara.memory_tokens, self._model.config.embed_dim
        memories = np.zeros((rows, next_power(max(1, len(request.memories))), *vectors), self._model.dtype)
        memories[0, : len(request.memories)] = request.memories
        return ids, mask, index, memories

    def _send(self, handle: RequestHandle) -> None:
        handle._admit()
        self._running.append(handle)
        self._log_probabilities[handle] = 0.0
        request = handle.request
        embeddings = self.embed(request)

        def receive() -> None:
            try:
                for piece in self.server.pieces(embeddings, request.sampling, request.seed, self._end_ids):
                    if handle.cancelled:
                        return  # which closes the connection, so that the server stops, too
                    self._received.put((handle, piece))
            except ClaraError as error:
                self._received.put((handle, error))
            except BaseException:
                self._received.put((handle, GeneratorServerError(f"{self.server.url}: reading its answer failed")))
                raise

        # As a daemon: a program that ends does not wait for answers that nobody reads.
        threading.Thread(target=receive, name="clara-generator", daemon=True).start()

    def _take(self, handle: RequestHandle, received: Piece | ClaraError) -> None:
        if handle not in self._running:
            return  # it was cancelled
        if isinstance(received, Piece):
            error = self._grow(handle, received)
        else:
            error = received
        if error is not None:
            handle.error = error
        if error is not None or handle.result is not None:
            self._remove(handle)

    def _grow(self, handle: RequestHandle, piece: Piece) -> ClaraError | None:
        """Append a piece's tokens to a request; return an error where they cannot be the model's."""
        tokens = list(piece.tokens)
        if any(token >= self._vocab_size for token in tokens):
            return GeneratorServerError(
                f"{self.server.url}: writes token {max(tokens)}, and the model here has {self._vocab_size}; serve the "
                "export of this checkpoint"
            )
        if len(handle.tokens) + len(tokens) > handle.request.sampling.max_new_tokens:
            return GeneratorServerError(f"{self.server.url}: writes more tokens than it was asked for")
        self._log_probabilities[handle] += piece.log_probability
        stopped = piece.ended == "stop"
        if stopped and tokens and tokens[-1] in self._end_ids:
            tokens.pop()
        handle._grow(tokens)
        if piece.ended is not None:
            handle._end("stop" if stopped else "length", self._log_probabilities[handle])
        return None

    def _drop_cancelled(self) -> None:
        for handle in [*self._waiting, *self._running]:
            if handle.cancelled:
                if handle.result is None:
                    handle._end("cancelled")
                self._remove(handle)

    def _remove(self, handle: RequestHandle) -> None:
        if handle in self._waiting:
            self._waiting.remove(handle)
        if handle in self._running:
            self._running.remove(handle)
            del self._log_probabilities[handle]


@partial(jax.jit, static_argnames=("model",))
def _splice(
    model: ClaraModel,
    params: Any,
    ids: Int32[jax.Array, "B T"],
    memory_index: Int32[jax.Array, "B T"],
    memories: Float[jax.Array, "B K M E"],
) -> Float[jax.Array, "B T E"]:
    return splice(model, params, ids, memory_index, memories)


@partial(jax.jit, static_argnames=("model",))
def _log_probabilities(
    model: ClaraModel,
    params: Any,
    ids: Int32[jax.Array, "B T"],
    mask: Bool[jax.Array, "B T"],
    memory_index: Int32[jax.Array, "B T"],
    memories: Float[jax.Array, "B K M E"],
) -> Float32[jax.Array, "B _"]:
    """Return the log-probabilities of the tokens after prompts, float32 [B, V + added]."""
    states, _ = prefill(model, params, ids, mask, memory_index, memories, ())
    return jax.nn.log_softmax(join_logits(*model.logits(params, states))[:, 0], axis=-1)
