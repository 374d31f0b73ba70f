"""Token pruning, the baseline that shortens text by dropping tokens: Selective Context (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather
from clara_jax.inference.encode import LENGTH_MULTIPLE
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import token_log_likelihoods
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
