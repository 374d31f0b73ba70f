"""The programs of a run, lowered for devices that need not be present: no parameters are allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.aot import workload
from clara_jax.inference.decode import Sampling, generate
from clara_jax.inference.encode import encode_batch
from clara_jax.input_pipeline.batches import Sequences
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.method.clara import ClaraModel
from clara_jax.model.quantization import NONE
from clara_jax.model.sharding import BATCH, batch_shards
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.step import make_train_step
from clara_jax.training.throughput import Work, block_weights, blocks_flops, step_flops, work

STEPS = 1000  # of the learning rate's schedule, which does not change the program's cost


class LoweredProgram(NamedTuple):
    """A lowered program with its analytic costs.

    Attributes:
      name: of the stage, or "compress" or "decode".
      lowered: the program.
      model_flops: of one call, over all devices; of decoding, of one token of every row.
      rows: examples, texts or prompts.
      bytes_read: of decoding, the least bytes that a device reads for one token of every row: the trip count of its
        loop depends on data, so that the compiled program cannot be counted. None elsewhere.
    """

    name: str
    lowered: jax.stages.Lowered
    model_flops: float
    rows: int
    bytes_read: float | None = None


def train_step(model: ClaraModel, stage: StageConfig, shapes: Shapes, mesh: jax.sharding.Mesh) -> LoweredProgram:
    """Lower a stage's real optimizer step, with donated state.

    Raises:
      ClaraError: the mesh does not divide the batch or a parameter.
    """
    trains = stage.subtrees
    optimizer = make_optimizer(stage.optimizer, STEPS)
    state, frozen = workload.state_and_frozen(workload.params(model, mesh), trains, optimizer, mesh)
    rows = stage.optimizer.batch_size
    batch = workload.batch(rows, shapes, model.clara.memory_tokens, stage.ranks, mesh)
    if stage.data.memories:
        batch = workload.stored(batch, model, mesh)
    step = make_train_step(model, stage.stage, stage.hyperparameters, optimizer, stage.optimizer.accumulate)
    assert isinstance(step, jax.stages.Wrapped)  # it is jitted
    with jax.set_mesh(mesh):
        lowered = step.lower(state, frozen, batch, workload.key(mesh))
    flops = step_flops(model.config, model.clara.lora_rank, stage.kind, trains, workload.full_batch(batch))
    return LoweredProgram(stage.name, lowered, flops, rows)


def inference(
    model: ClaraModel, stage: StageConfig, shapes: Shapes, mesh: jax.sharding.Mesh
) -> Iterator[LoweredProgram]:
    """Lower the compression of a batch of full documents, unless they are text, and the decoding of a stage's prompts.

    Decoding has one row for each batch shard of the mesh.
    """
    config, rank = model.config, model.clara.lora_rank
    params = workload.params(model, mesh)

    def array(dtype: jax.typing.DTypeLike, *shape: int) -> Any:  # a ShapeDtypeStruct in the place of an array
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(BATCH)))

    if shapes.documents:
        rows = stage.optimizer.microbatch * shapes.documents
        length = shapes.encoder_width + model.clara.memory_tokens
        with jax.set_mesh(mesh):
            tokens, memory = array(jnp.int32, rows, length), array(jnp.int32, rows, 1, model.clara.memory_tokens)
            lowered = encode_batch.lower(model, "compressor", params, Sequences(tokens, tokens, memory))
        one = work(np.ones((1, length), bool), config.sliding_window)
        flops = blocks_flops(config, rank, Work(rows * one.tokens, rows * one.pairs), False)
        yield LoweredProgram("compress", lowered, flops, rows)

    rows, prompt = batch_shards(mesh), shapes.prompt_length - shapes.target_length
    memory = None
    if shapes.documents:
        memory = array(model.dtype, rows, stage.topk.k, model.clara.memory_tokens, config.embed_dim)
    tokens = (array(jnp.int32, rows, prompt), array(bool, rows, prompt), array(jnp.int32, rows, prompt))
    sampling = Sampling(stage.evaluation.answer_tokens)
    with jax.set_mesh(mesh):
        lowered = generate.lower(model, params, *tokens, memory, array(jnp.uint32, rows), sampling, (2,))
    slots = prompt + stage.evaluation.answer_tokens
    head_flops = 2 * rows * config.vocab_size * config.embed_dim
    flops = blocks_flops(config, rank, Work(rows, rows * slots), False) + head_flops
    yield LoweredProgram("decode", lowered, flops, rows, decode_bytes(model, rows, slots, mesh))


def decode_bytes(model: ClaraModel, rows: int, slots: int, mesh: jax.sharding.Mesh) -> float:
    """Return the bytes that a device reads for one token of every row: kernels, LM head, keys and values."""
    config, width = model.config, model.dtype.itemsize
    blocks, head = config.layers * block_weights(config), config.vocab_size * config.embed_dim
    kernels = (blocks * (width if model.quantization == NONE else 1) + head * width) / mesh.shape["model"]
    cache = 2 * config.layers * math.ceil(rows / batch_shards(mesh)) * slots * config.kv_heads * config.head_dim
    return kernels + cache * width
