"""Throughput accounting: the floating-point operations of a training step.

Model FLOPs are those that the mathematics needs, whatever the program does. A multiply-add is two. Counted are attended
tokens alone (padding is wasted), and nothing that rematerialization or the chunked loss compute a second time. For a
text of n attended tokens that goes through the L blocks, with N weights in the linear maps of a block:

    linear maps     2 N n                     forward
                    2 N n                     gradient with respect to activations
                    2 N n                     gradient with respect to the weights, where these are trained
    attention       4 H C n (n + 1) / 2       forward: scores and mixed values of the pairs (token, itself or before)
                    8 H C n (n + 1) / 2       backward: each of the two products has a gradient for both its factors
    an adapter      as linear maps, with R (in + out) weights each
    LM head         as a linear map of V E weights, at the positions that carry a label

So per token a step is 2N where nothing flows back, 4N where the base is frozen (LoRA), 6N where it is trained, and
attention besides. 2N and 6N: Kaplan et al. 2020 (arXiv 2001.08361, section 2.1). Counting what the model needs, and not
what rematerialization repeats, is the MFU of Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B). They take all
n² pairs for attention; here the causal mask leaves about half of them, and a sliding window W tokens to each.

Embedding, norms, softmax, rotations, scores of documents, the top-k and the optimizer are not counted: they are no
matrix products, or well below a hundredth of a model of a billion parameters.

What flows back in which stage follows from `clara_jax.method.stages`:

    scp, instruct         documents (compressor) and prompts (generator), both there and back
    end_to_end            documents there only, or not at all where their memories are kept; questions and prompts both
    retrieval             documents as in end_to_end, questions both; prompts are not computed
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.input_pipeline.batches import Array, Batch, PromptBatch, Sequences
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.method.parameters import overlap
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import Projection, projection_groups


class Work(NamedTuple):
    """Texts that go through the blocks together."""

    tokens: int  # attended
    pairs: int  # (token, token it may look at)


def work(mask: Array, window: int | None = None) -> Work:
    """Return the tokens and pairs of a mask as `Transformer` takes it.

    Args:
      mask: [..., T], bool, or the numbers of a row's sequences.
      window: of sliding attention; None where all earlier tokens are seen.
    """
    lengths = _lengths(mask).astype(np.int64)
    full = lengths if window is None else np.minimum(lengths, window)
    return Work(int(lengths.sum()), int((full * (full + 1) // 2 + (lengths - full) * full).sum()))


def _lengths(mask: Array) -> np.ndarray:
    rows = np.asarray(mask).reshape(-1, mask.shape[-1])
    if rows.dtype == bool:
        return rows.sum(axis=1)
    sequences = int(rows.max(initial=0)) + 1
    counted = np.bincount((rows + sequences * np.arange(len(rows))[:, None]).ravel(), minlength=sequences * len(rows))
    return counted.reshape(len(rows), sequences)[:, 1:].ravel()


def block_weights(config: ModelConfig) -> int:
    """Return N, the number of weights in the linear maps of one block."""
    return sum(inputs * outputs for inputs, outputs in map_sizes(config))


def map_sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """Return inputs and outputs of each linear map of one block."""
    return [_sizes(m) for group in _groups(config) for m in group]


def adapter_weights(config: ModelConfig, rank: int) -> int:
    """Return the number of weights of one adapter in one block; the maps of a group share their A."""
    return sum(rank * (_sizes(group[0])[0] + sum(_sizes(m)[1] for m in group)) for group in _groups(config))


def _groups(config: ModelConfig) -> Iterator[Sequence[Projection]]:
    for module in projection_groups(config).values():
        yield from (tuple(group.values()) for group in module.values())


def _sizes(m: Projection) -> tuple[int, int]:
    inputs, outputs = (math.prod(size for _, size, _ in axes) for axes in (m.inputs, m.outputs))
    return inputs, outputs


def blocks_flops(config: ModelConfig, rank: int, done: Work, flows_back: bool, trained: Sequence[str] = ()) -> int:
    """Return the FLOPs of texts that go through all blocks, and back where ``flows_back``.

    Args:
      config: the backbone's.
      rank: of the adapter.
      done: the texts.
      flows_back: whether there is a backward pass.
      trained: which of "base" and "lora" get a gradient, too.
    """
    base, lora = (2 * (1 + flows_back + (flows_back and name in trained)) for name in ("base", "lora"))
    linear = (base * block_weights(config) + lora * adapter_weights(config, rank)) * done.tokens
    attention = 4 * (3 if flows_back else 1) * config.heads * config.head_dim * done.pairs
    return config.layers * (linear + attention)


def head_flops(config: ModelConfig, labels: int, trained: bool) -> int:
    """Return the FLOPs of the LM head at so many labelled positions, forward and backward, without the added tokens."""
    return 2 * (3 if trained else 2) * config.vocab_size * config.embed_dim * labels


def step_flops(config: ModelConfig, rank: int, stage: str, trains: Sequence[str], batch: Batch) -> int:
    """Return the model FLOPs of one optimizer step, over all devices and microbatches.

    Args:
      config: the backbone's.
      rank: R of the adapters.
      stage: its name.
      trains: the subtrees of the parameters that it trains.
      batch: with host arrays: reading a device's would wait for it.
    """

    def is_trained(*subtrees: str) -> bool:
        return any(overlap(name, subtree) for name in trains for subtree in subtrees)

    def passes(rows: Sequences | PromptBatch | None, role: str, flows_back: bool) -> int:
        if rows is None:
            return 0
        trained = [name for name in ("base", "lora") if is_trained({"base": "base/layers"}.get(name, f"lora/{role}"))]
        return blocks_flops(config, rank, work(rows.segment_ids, config.sliding_window), flows_back, trained)

    # A gradient comes to a text's end in any case; it goes back through the text where something on the way is trained.
    ranks = stage in ("end_to_end", "retrieval")
    inputs = ("base", "tokens/memory")
    back = not ranks and is_trained("lora/compressor", *inputs)
    total = passes(batch.texts, "compressor", back)
    if ranks:
        query_back = is_trained("lora/query_reasoner", *inputs)
        total += passes(batch.query, "query_reasoner", query_back)
    if stage != "retrieval":
        total += passes(batch.prompt, "generator", True)
        table = "base/embed" if config.tied else "base/lm_head"
        total += head_flops(config, int((batch.prompt.labels != IGNORED).sum()), is_trained(table))
    return total
