"""What a training step moves, counted with pencil and paper, to hold against what a compiled program moves.

Fully sharded data parallelism keeps 1 / n of every kernel on each of the n devices of the ``data`` axis, and gathers a
layer's kernels whenever it runs the layer: in the forward pass, and again in the backward pass, which needs them for
the gradients of activations (what rematerialization runs a second time uses the same gather). A device receives, and
passes on, (n - 1) / n of what is gathered. So, with L blocks of N weights, b bytes each, and m devices along ``model``:

    base kernels    (n - 1) / n · passes · L N b / m
    adapters        the same with an adapter's own weights in place of N; and its gradient, in float32, reduced
    tables          (n - 1) / n · V E b / m for each lookup of token embeddings and each use of the LM head

A pass is one text's way through the blocks, there or back: compressor and generator both ways in scp and instruct (4),
documents there, questions and prompts both ways in end_to_end (5), documents there and questions both ways in retrieval
(3). Each of a batch's microbatches makes them all. Over ``model``, the outputs of attention and MLP are summed, which
moves 2 (m - 1) / m of the activations, T E b for T tokens of a device, twice in each layer of a pass. Over ``replica``,
only gradients move.
"""

from __future__ import annotations

import math

import jax

from clara_jax.data.shapes import Shapes
from clara_jax.method.clara import ClaraModel
from clara_jax.model.sharding import batch_shards
from clara_jax.training.config import StageConfig
from clara_jax.training.throughput import adapter_weights, block_weights

# Passes through the blocks, there and back, by role.
PASSES = {
    "scp": {"document": 2, "prompt": 2},
    "instruct": {"document": 2, "prompt": 2},
    "end_to_end": {"document": 1, "query": 2, "prompt": 2},
    "retrieval": {"document": 1, "query": 2},
}


def step_bytes(
    model: ClaraModel, stage: StageConfig, shapes: Shapes, rows: int, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Bytes that a device sends in one step of a stage whose base is frozen.

    Args:
      rows: B, of the whole batch.

    Returns:
      by what they belong to: "base", "adapters", "tables", "gradients", "activations".
    """
    config, rank, width = model.config, model.clara.lora_rank, model.dtype.itemsize
    data, split, replica = (mesh.shape[axis] for axis in ("data", "model", "replica"))
    passes, times = PASSES[stage.name], stage.accumulate
    ring = (data - 1) / data / split
    count = sum(passes.values())
    table = config.vocab_size * config.width * width
    # Every text looks its tokens up; only prompts reach the head, there and back, and not in retrieval.
    uses = len(passes) + (2 if "prompt" in passes else 0)
    trained = sum(number == 2 for number in passes.values()) * config.layers * adapter_weights(config, rank) * 4
    tokens = texts(shapes, model.clara.memory_tokens, rows // times)
    over_model = sum(tokens[name] * number for name, number in passes.items()) / batch_shards(mesh)
    return {
        "base": ring * count * times * config.layers * block_weights(config) * width,
        "adapters": ring * count * times * config.layers * adapter_weights(config, rank) * width,
        "tables": ring * uses * times * table,
        "gradients": trained / split * ((data - 1) / data * times + 2 * (replica - 1) / replica / data),
        "activations": 2 * (split - 1) / split * 2 * config.layers * over_model * times * config.width * width,
    }


def texts(shapes: Shapes, memory_tokens: int, rows: int) -> dict[str, int]:
    """Positions of all documents, questions and prompts of so many rows."""
    return {
        "document": rows * shapes.documents * (shapes.encoder_width + memory_tokens),
        "query": rows * (shapes.query_width + memory_tokens),
        "prompt": rows * shapes.prompt_length,
    }


def weight_bytes(model: ClaraModel, stage: StageConfig, mesh: jax.sharding.Mesh) -> float:
    """Bytes of gathered base kernels that a device writes and reads again in its own memory in one step: a lower bound
    of what it moves there, without activations."""
    passes = sum(PASSES[stage.name].values()) * stage.accumulate
    kernels = model.config.layers * block_weights(model.config) * model.dtype.itemsize / mesh.shape["model"]
    return (2 if mesh.shape["data"] > 1 else 1) * passes * kernels


def decode_bytes(model: ClaraModel, rows: int, slots: int, mesh: jax.sharding.Mesh) -> float:
    """Bytes that a device reads for one token of every row: kernels, LM head, keys and values."""
    config, width = model.config, model.dtype.itemsize
    kernels = (config.layers * block_weights(config) + config.vocab_size * config.width) * width / mesh.shape["model"]
    cache = 2 * config.layers * math.ceil(rows / batch_shards(mesh)) * slots * config.kv_heads * config.head_channels
    return kernels + cache * width
