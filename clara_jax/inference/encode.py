"""Encoding of any number of texts by the compressor or the query reasoner, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from clara_jax.distributed import gather
from clara_jax.input_pipeline.batches import Sequences, with_memory
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraModel
from clara_jax.method.compressor import encode
from clara_jax.model.sharding import batch_shards, put_batch

LENGTH_MULTIPLE = 32  # lengths are rounded up to it, so that few shapes are compiled


@partial(jax.jit, static_argnums=(0, 1))
def encode_batch(model: ClaraModel, role: str, params: Any, texts: Sequences) -> Float[jax.Array, "N M E"]:
    """Return memories [N, M, E] of N rows of one text, see `clara_jax.method.compressor.encode`."""
    return encode(model, params, role, texts).memory[:, 0]


def encode_texts(
    model: ClaraModel,
    params: Any,
    role: str,
    texts: Sequence[Sequence[int] | np.ndarray],
    tokenizer: ClaraTokenizer,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    program: Callable[..., Any] = encode_batch,
) -> Iterator[tuple[list[int], Any]]:
    """Yield (indices into ``texts``, their memories [n, M, E] in the compute dtype), batch by batch.

    The longest texts come first: running out of memory shows at once, and an estimate of the time left is not too
    optimistic. While the caller handles a batch, the next one is computed.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      role: "compressor" for documents, "query_reasoner" for questions.
      texts: token ids without memory tokens.
      tokenizer: for padding and memory tokens.
      mesh: that the parameters are on.
      batch_size: texts of a device call, which the mesh divides.
      program: `encode_batch`, or another function of its arguments; its arrays, of N texts each, are then yielded in
        place of the memories.
    """
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    pending = None
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        length = -(-len(texts[places[0]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        # Few texts, or the last ones, make a smaller batch: padding rows would cost time, too.
        count = batch_shards(mesh)
        while count < len(places):
            count *= 2
        rows = [np.asarray(texts[i], np.int32) for i in places] + [None] * (min(count, batch_size) - len(places))
        padded = with_memory(rows, length, tokenizer, tokenizer.memories_of(length))
        with jax.set_mesh(mesh):
            encoded = program(model, role, params, put_batch(padded, mesh))
        if pending is not None:
            yield _on_host(*pending)
        pending = places, encoded
    if pending is not None:
        yield _on_host(*pending)


def _on_host(places: list[int], encoded: Any) -> tuple[list[int], Any]:
    return places, jax.tree.map(lambda x: x[: len(places)], gather(encoded))
