"""Crammed memories: M vectors optimised for one document, an upper bound on what a frozen generator can read of it.

The memories of one document are optimised by gradient until the generator reconstructs the document from them, after
the token `<AE>` as in training; no question is known. Answers from them are an upper bound for a compressor, which has
one pass over the document (Kuratov et al. 2025, "Cramming 1568 tokens into a single vector and back again").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from clara_jax import distributed
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Batch, StoredMemories, collate, plan_shapes
from clara_jax.input_pipeline.encoding import Encoding, encode_records
from clara_jax.input_pipeline.records import Record
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import language_model_loss
from clara_jax.method.generator import label_weights, target_states
from clara_jax.model.sharding import put_batch


@dataclasses.dataclass(frozen=True)
class Cramming:
    """The settings of the optimisation.

    Attributes:
      steps: of Adam, on each document.
      learning_rate: its peak, in units of the root mean square of the document's memories as the compressor made them,
        where the optimisation starts; it falls to zero as a cosine.
    """

    steps: int
    learning_rate: float

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.learning_rate < math.inf:
            raise ClaraError(
                f"crammed memories: {self.steps} steps with a learning rate of {self.learning_rate:g}; at least one "
                "step, and a positive rate, are needed"
            )


def cram(bundle: Bundle, cramming: Cramming, texts: Sequence[str], memories: np.ndarray, batch_size: int) -> np.ndarray:
    """Return memories [N, M, E] that are optimised for the generator to reconstruct N texts from them.

    Args:
      bundle: the model, which stays frozen.
      cramming: the settings of the optimisation.
      texts: N texts, as far as the compressor reads them.
      memories: where the optimisation starts, [N, M, E].
      batch_size: texts of a device call, a multiple of the mesh's batch shards.
    """
    records = [
        Record("autoencode", (text,), (), (text,), (text,), (), f"text {number}", str(number))
        for number, text in enumerate(bundle.tokenizer.cut_texts(texts))
    ]
    examples = encode_records(records, bundle.tokenizer, Encoding("autoencode", 1))
    order = sorted(range(len(texts)), key=lambda i: -len(examples[i].prompt_ids))
    found = np.empty_like(memories)
    shown = distributed.is_main()
    with tqdm(total=len(texts), unit=" documents", desc="cramming", leave=False, disable=not shown) as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            rows = [examples[i] for i in places]
            started = np.zeros((batch_size, *memories.shape[1:]), np.float32)
            started[: len(places)] = memories[places]

            def read(_: Any, memories: np.ndarray = started) -> np.ndarray:
                return memories

            batch = collate(rows, plan_shapes(rows, bundle.tokenizer), bundle.tokenizer, batch_size, memories=read)
            with jax.set_mesh(bundle.mesh):
                made = _optimise(bundle.model, cramming, bundle.params, put_batch(batch, bundle.mesh))
                found[places] = gather(made)[: len(places)]
            bar.update(len(places))
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _optimise(model: ClaraModel, cramming: Cramming, params: Any, batch: Batch) -> jax.Array:
    """Return the optimised memories, float32 [B, M, E]; rows do not depend on each other."""
    assert isinstance(batch.documents, StoredMemories)  # `cram` collates with memories
    started = jnp.asarray(batch.documents.vectors)[:, 0]
    weights = label_weights(batch.prompt)  # each text counts as much as any other, so rows are optimised alike

    def loss(memories: jax.Array) -> jax.Array:
        states = target_states(model, params, batch.prompt, memories[:, None])
        return language_model_loss(model, params, states, jnp.asarray(batch.prompt.labels), weights)[0]

    scale = jnp.sqrt(jnp.mean(jnp.square(started), axis=(1, 2), keepdims=True))
    optimizer = optax.adam(optax.cosine_decay_schedule(cramming.learning_rate, cramming.steps))

    def step(carried: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
        offset, state = carried
        gradient = jax.grad(lambda offset: loss(started + scale * offset))(offset)
        updates, state = optimizer.update(gradient, state)
        return (offset + jnp.asarray(updates), state), None

    begin = jnp.zeros_like(started)
    (offset, _), _ = jax.lax.scan(step, (begin, optimizer.init(begin)), length=cramming.steps)
    return started + scale * offset
