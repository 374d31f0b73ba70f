"""The arguments of a training step as abstract arrays with shardings: nothing is allocated."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, StoredMemories
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.method.clara import ClaraModel
from clara_jax.method.parameters import declare, split
from clara_jax.model.declare import abstract
from clara_jax.model.sharding import BATCH, check_batch
from clara_jax.training.step import TrainState


def params(model: ClaraModel, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return all parameters; the base is stored in the compute dtype."""
    return abstract(declare(model.config, model.clara, model.base_dtype), mesh)


def state_and_frozen(
    tree: Any, trains: tuple[str, ...], optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state at the start of a stage, and the frozen parameters."""
    trained, frozen = split(tree, trains)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        moments = jax.eval_shape(jax.jit(optimizer.init), trained)

    def place(x: jax.ShapeDtypeStruct) -> Any:  # a ShapeDtypeStruct where TrainState holds an array
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

    step = place(jax.ShapeDtypeStruct((), jnp.int32))
    return TrainState(step, trained, jax.tree.map(place, moments)), frozen


def key(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """Return the run's PRNG key, replicated on every device."""
    dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
    return jax.ShapeDtypeStruct((), dtype, sharding=jax.NamedSharding(mesh, jax.P()))


def batch(rows: int, shapes: Shapes, memory_tokens: int, ranks: bool, mesh: jax.sharding.Mesh) -> Batch:
    """Return a batch of unpacked rows, every one of the full shapes.

    Args:
      rows: B.
      shapes: lengths of the rows.
      memory_tokens: M.
      ranks: whether the stage has questions and positives (end_to_end, retrieval).
      mesh: over which rows are split.

    Raises:
      ClaraError: the mesh does not divide the rows.
    """
    check_batch(rows, mesh)

    def array(dtype: Any, *shape: int) -> Any:  # a ShapeDtypeStruct where Batch holds an array
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=jax.NamedSharding(mesh, jax.P(BATCH)))

    def texts(width: int, *leading: int) -> Sequences:
        tokens = array(jnp.int32, *leading, width + memory_tokens)
        return Sequences(tokens, tokens, array(jnp.int32, *leading, 1, memory_tokens))

    prompt, target = (array(jnp.int32, length) for length in (shapes.prompt_length, shapes.target_length))
    return Batch(
        documents=texts(shapes.encoder_width, shapes.documents) if shapes.documents else None,
        document_valid=array(bool, shapes.documents),
        query=texts(shapes.query_width) if ranks else None,
        prompt=PromptBatch(prompt, prompt, prompt, target, target),
        positives=array(bool, shapes.documents) if ranks else None,
        example_ids=array(jnp.int32, 1),
    )


def stored(batch: Batch, model: ClaraModel, mesh: jax.sharding.Mesh) -> Batch:
    """Return the batch with memories in the place of its documents, as where these were compressed before."""
    shape = *batch.document_valid.shape, model.clara.memory_tokens, model.config.embed_dim
    sharding = jax.NamedSharding(mesh, jax.P(BATCH))
    memories: Any = jax.ShapeDtypeStruct(shape, model.dtype, sharding=sharding)  # in the place of an array, as above
    return dataclasses.replace(batch, documents=StoredMemories(memories))
