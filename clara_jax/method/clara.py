"""The method's hyperparameters, and the backbone with the adapter of one of its three roles."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int32, Key

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.document_tokenizer import FRAME, MISSING_BOS
from clara_jax.memory_count import FIXED, MEMORY_COUNTS
from clara_jax.model.attention import IMPLEMENTATIONS
from clara_jax.model.cache import KVCache
from clara_jax.model.config import ModelConfig
from clara_jax.model.lora import Dropout
from clara_jax.model.precision import PRECISIONS, check
from clara_jax.model.quantization import NONE
from clara_jax.model.quantization import check as check_quantization
from clara_jax.model.sharding import Array
from clara_jax.model.transformer import INTERMEDIATES, REMAT_POLICIES, Mask, Transformer, positions_of

ROLES = ("compressor", "query_reasoner", "generator")
MEMORY_MAPS = (STATE, AFFINE) = ("state", "affine")
MEMORY_PLACES = (END, RUNS) = ("end", "runs")

LARGEST = 2**20  # of a length or a rank


@dataclasses.dataclass(frozen=True)
class ClaraConfig:
    """Hyperparameters of a CLaRa model beside its base.

    Sizes of documents and adapters are Table 10's; the released checkpoint format has them and ``max_length``; the
    other fields are this project's.

    Attributes:
      doc_max_length: longest document, in tokens.
      compress_rate: tokens of a full document per memory vector; M = doc_max_length / compress_rate.
      lora_rank, lora_alpha, lora_dropout: of each of the three adapters; alpha defaults to twice the rank.
      different_mem_tokens: M different memory tokens, or one token M times.
      memory_map: "state": a memory is the last-layer state at its memory token (the paper, released models); "affine":
        an affine map of it, one scale, center and shift per channel (see `clara_jax.method.memory_map`).
      memory_places: position of the M memory tokens: at the "end" of the text (the paper, released models), or each at
        the end of one of M even "runs" of the text's tokens.
      memory_count: memories of a text: the "fixed" M of a full document (the paper, released models), or in
        "proportional" number, one for each ``compress_rate`` tokens, at most M. Arrays have room for M; rows beyond a
        text's memories are zero.
      max_length: longest prompt with its answer, in tokens.
      missing_bos: for a tokenizer without bos or eos, "omit" it, or let another token stand for it: the first
        "memory_token"; or, as the released code, the "first_special" token without a role ("additional special tokens",
        such as Qwen's <|im_start|>), which is the first memory token where the base has none.
    """

    doc_max_length: int = 256
    compress_rate: int = 16
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.1
    different_mem_tokens: bool = True
    memory_map: str = "state"
    memory_places: str = "end"
    memory_count: str = FIXED
    max_length: int = 1024
    missing_bos: str = "omit"

    def __post_init__(self):
        for field in ("doc_max_length", "compress_rate", "lora_rank", "max_length"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ClaraError(f"{field} is {value!r}; it must be a positive whole number")
            if value > LARGEST:
                raise ClaraError(f"{field} is {value:,}; it must be at most {LARGEST:,}")
        if self.doc_max_length % self.compress_rate:
            rates = [rate for rate in range(1, self.doc_max_length + 1) if self.doc_max_length % rate == 0]
            raise ClaraError(
                f"compress_rate is {self.compress_rate}; it must divide doc_max_length {self.doc_max_length}: "
                f"{', '.join(map(str, rates))}"
            )
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        object.__setattr__(self, "lora_alpha", alpha)
        if not 0 < alpha < math.inf:
            raise ClaraError(f"lora_alpha is {alpha!r}; it must be positive")
        if not 0 <= self.lora_dropout < 1:
            raise ClaraError(f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and below 1")
        choices = (("memory_map", MEMORY_MAPS), ("memory_places", MEMORY_PLACES), ("memory_count", MEMORY_COUNTS))
        for field, names in choices:
            if getattr(self, field) not in names:
                raise ClaraError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(names)}")
        if self.missing_bos not in MISSING_BOS:
            raise ClaraError(f"missing_bos is {self.missing_bos!r}; it must be one of {', '.join(MISSING_BOS)}")

    @property
    def memory_tokens(self) -> int:
        """Vectors that a full document is compressed into: M, the paper's l."""
        return self.doc_max_length // self.compress_rate

    @property
    def lora_scale(self) -> float:
        """Factor of an adapter's output: alpha / rank."""
        assert self.lora_alpha is not None  # set by __post_init__
        return self.lora_alpha / self.lora_rank


@dataclasses.dataclass(frozen=True)
class ClaraModel:
    """A backbone with the method's hyperparameters: pure functions of ``params``, static under jit.

    ``params`` is ``{"base", "lora": {role: ...}, "tokens"}`` (see `clara_jax.method.parameters`). All methods run under
    `jax.set_mesh`.

    Attributes:
      precision: one of `clara_jax.model.precision.PRECISIONS`; with "float32" matrix products are exact float32 on
        every platform.
      remat: what is stored of each block for the backward pass, a name of `REMAT_POLICIES`.
      attention: one of `IMPLEMENTATIONS`; "auto" depends on the mesh's devices.
      quantization: of the base's kernels, one of `clara_jax.model.quantization.CHOICES`.
    """

    config: ModelConfig
    clara: ClaraConfig
    precision: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"
    quantization: str = NONE

    def __post_init__(self):
        check(self.precision)
        check_quantization(self.quantization)
        positions, document = self.config.max_positions, self.clara.doc_max_length + FRAME + self.clara.memory_tokens
        for name, length in (("max_length", self.clara.max_length), ("doc_max_length", document)):
            if length > positions:
                raise ClaraError(
                    f"{name} is {getattr(self.clara, name)}, which makes rows of {length} tokens; the base has "
                    f'"max_position_embeddings" {positions} and knows no further ones'
                )
        if self.remat not in REMAT_POLICIES:
            raise ClaraError(f"remat: {self.remat!r} must be one of {', '.join(REMAT_POLICIES)}")
        if self.attention not in IMPLEMENTATIONS:
            raise ClaraError(f"attention: {self.attention!r} must be one of {', '.join(IMPLEMENTATIONS)}")

    @property
    def dtype(self) -> Any:
        """Dtype of activations: of embeddings, states, memories, keys and values."""
        return jnp.dtype(PRECISIONS[self.precision].carried)

    @property
    def base_dtype(self) -> Any:
        """Dtype of the base's parameters, but for kernels that are quantized."""
        return jnp.dtype(PRECISIONS[self.precision].stored)

    def embed(self, params: Any, ids: Int32[Array, "B T"]) -> Float[jax.Array, "B T E"]:
        """Return the embeddings [B, T, E] of token ids, int32 [B, T]."""
        return self._apply(params, None, ids, method="embed")

    @overload
    def forward(
        self,
        params: Any,
        role: str | None,
        x: Float[jax.Array, "B T E"],
        mask: Mask,
        caches: Sequence[KVCache] = (),
        dropout: Dropout | None = None,
        return_kv: Literal[False] = False,
    ) -> tuple[Float[jax.Array, "B T E"], None]: ...

    @overload
    def forward(
        self,
        params: Any,
        role: str | None,
        x: Float[jax.Array, "B T E"],
        mask: Mask,
        caches: Sequence[KVCache] = (),
        dropout: Dropout | None = None,
        *,
        return_kv: Literal[True],
    ) -> tuple[Float[jax.Array, "B T E"], KVCache]: ...

    def forward(
        self,
        params: Any,
        role: str | None,
        x: Float[jax.Array, "B T E"],
        mask: Mask,
        caches: Sequence[KVCache] = (),
        dropout: Dropout | None = None,
        return_kv: bool = False,
    ) -> tuple[Float[jax.Array, "B T E"], KVCache | None]:
        """Return the last-layer states of embeddings, [B, T, E] both, and the tokens' keys and values if asked for.

        Args:
          params: the model's parameters.
          role: whose adapter is applied; None for the base alone.
          x: embeddings.
          mask: bool or int32 [B, T], see `Transformer.__call__`.
          caches: keys and values of earlier tokens, in parts that follow each other.
          dropout: for the adapters' inputs, in training.
          return_kv: return the tokens' keys and values; padding must stand on the right then.
        """
        return self._apply(params, role, x, mask, caches, dropout, return_kv)

    def queries(
        self,
        params: Any,
        role: str | None,
        x: Float[jax.Array, "B T E"],
        mask: Mask,
        caches: Sequence[KVCache],
    ) -> tuple[Float[jax.Array, "L B T H C"], KVCache]:
        """Return the queries of attention in `forward`, compute dtype [L, B, T, H, C], and the tokens' keys and values.

        The keys and values come after those of the caches.
        """
        (_, kv), variables = self._apply(params, role, x, mask, caches, None, True, mutable=[INTERMEDIATES])
        (q,) = variables[INTERMEDIATES]["layers"]["attention"]["queries"]
        return q, kv

    def logits(
        self, params: Any, states: Float[jax.Array, "B T E"]
    ) -> tuple[Float32[jax.Array, "B T V"], Float32[jax.Array, "B T added"] | None]:
        """Return float32 logits of the vocabulary and of the added tokens for states [B, T, E]."""
        return self._apply(params, None, states, method="unembed")

    def dropout(self, keys: Key[jax.Array, "B S"] | None, segment_ids: Int32[Array, "B T"]) -> Dropout | None:
        """Return the dropout of a batch; None without keys or at rate 0.

        Args:
          keys: PRNG keys [B, S], of a row's S sequences.
          segment_ids: int32 [B, T], the number of a token's sequence, from 1; 0 for padding.
        """
        if keys is None or self.clara.lora_dropout == 0:
            return None
        return Dropout(keys, jnp.asarray(segment_ids), positions_of(segment_ids), self.clara.lora_dropout)

    def _apply(self, params: Any, role: str | None, *args, **options) -> Any:
        variables = {"params": params["base"], "tokens": params["tokens"]}
        if role is not None:
            variables["lora"] = params["lora"][role]
        exact = jax.default_matmul_precision("highest") if self.precision == "float32" else contextlib.nullcontext()
        with exact:
            operands = jnp.dtype(PRECISIONS[self.precision].operands)
            backbone = Transformer(self.config, self.clara.lora_scale, self.dtype, operands, self.remat, self.attention)
            return backbone.apply(variables, *args, **options)
