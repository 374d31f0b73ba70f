"""What memories are compared with: text that is shortened by pruning, and memories that are optimised for a document.

Pruning is Selective Context (Li et al. 2023): the least surprising tokens are dropped. *Crammed* memories are an upper
bound on what a frozen generator can read from M vectors: they are optimised by gradient until the generator
reconstructs the document from them, after the token `<AE>` as in training; no question is known. A compressor has one
pass over the document (Kuratov et al. 2025, "Cramming 1568 tokens into a single vector and back again").
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

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather, is_main
from clara_jax.errors import ClaraError
from clara_jax.inference.encode import LENGTH_MULTIPLE
from clara_jax.input_pipeline.batches import Batch, StoredMemories, collate, plan_shapes
from clara_jax.input_pipeline.encoding import Encoding, encode_records
from clara_jax.input_pipeline.records import Record
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.memory_count import existing
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import language_model_loss, token_log_likelihoods
from clara_jax.method.generator import label_weights, target_states
from clara_jax.model.sharding import batch_shards, put_batch


def pruned(ids: Sequence[int], surprisals: np.ndarray, rate: int, characters: Sequence[int] | None = None) -> list[int]:
    """Return the ⌈T / rate⌉ most surprising tokens, in their order; of equal ones the earlier.

    Args:
      ids: T tokens.
      surprisals: -log p of each, float [T].
      rate: tokens of the text for each that is kept.
      characters: the group of each token. Tokens of a group are kept or dropped together, by the most surprising of
        them; groups for which there is no room any more are skipped (`ClaraTokenizer.whole_characters`). None: every
        token is a group.
    """
    room, groups = -(-len(ids) // rate), range(len(ids)) if characters is None else characters
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    kept: list[int] = []
    for places in sorted(members.values(), key=lambda places: -max(surprisals[i] for i in places)):
        if len(places) <= room - len(kept):
            kept += places
    return [ids[i] for i in sorted(kept)]


def truncated(ids: Sequence[int], count: int, characters: Sequence[int]) -> list[int]:
    """Return at most the first ``count`` tokens, without those of a character that would be cut."""
    if count < len(ids):
        while count and characters[count] == characters[count - 1]:
            count -= 1
    return list(ids[:count])


def surprisals(bundle: Bundle, texts: Sequence[Sequence[int]], batch_size: int) -> list[np.ndarray]:
    """Return -log p(t_i | t_<i) in nats of each token of texts, float32 [T] each, by the base model without adapters.

    The first token is conditioned on the beginning token; where the tokenizer has none, its surprisal is infinite.

    Args:
      bundle: of which the base model is used.
      texts: token ids, without frame.
      batch_size: texts of a device call, a multiple of the mesh's batch shards.
    """
    assert batch_size % batch_shards(bundle.mesh) == 0
    tokenizer, found = bundle.tokenizer, {}
    begin = tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        width = -(-(len(texts[places[0]]) + 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        ids = np.full((batch_size, width), tokenizer.pad_id, np.int32)
        mask = np.zeros((batch_size, width), bool)
        for row, place in enumerate(places):
            sequence = [begin, *texts[place]]
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, True
        with jax.set_mesh(bundle.mesh):
            likely = gather(_log_likelihoods(bundle.model, bundle.params, *put_batch((ids, mask), bundle.mesh)))
        for row, place in enumerate(places):
            found[place] = -likely[row, : len(texts[place])]
            if tokenizer.bos_id is None and len(found[place]):
                found[place][0] = np.inf
    return [found[i] for i in range(len(texts))]


@partial(jax.jit, static_argnums=0)
def _log_likelihoods(model: ClaraModel, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Return log p of the tokens from the second on, float32 [B, T - 1]."""
    states, _ = model.forward(params, None, model.embed(params, ids), mask)
    labels = jnp.where(mask[:, 1:], ids[:, 1:], IGNORED)
    return token_log_likelihoods(model, params, states[:, :-1], labels)


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
    with tqdm(total=len(texts), unit=" documents", desc="cramming", leave=False, disable=not is_main()) as bar:
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

    count = jnp.sum(existing(started, model.clara.memory_count), axis=1)[:, None, None]
    total = jnp.sum(jnp.square(started), axis=(1, 2), keepdims=True)
    scale = jnp.sqrt(total / (jnp.maximum(count, 1) * started.shape[2]))
    optimizer = optax.adam(optax.cosine_decay_schedule(cramming.learning_rate, cramming.steps))

    def step(carried: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
        offset, state = carried
        gradient = jax.grad(lambda offset: loss(started + scale * offset))(offset)
        updates, state = optimizer.update(gradient, state)
        return (offset + jnp.asarray(updates), state), None

    begin = jnp.zeros_like(started)
    (offset, _), _ = jax.lax.scan(step, (begin, optimizer.init(begin)), length=cramming.steps)
    return started + scale * offset
