"""The optimizer step and the evaluation steps: pure, jitted functions of a state and a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax

from clara_jax.input_pipeline.batches import Array, Batch
from clara_jax.method.appendix.gradient_paths import gradient_terms
from clara_jax.method.clara import ClaraModel
from clara_jax.method.parameters import merge
from clara_jax.method.stages import Objective, Stage, Terms, compress_distinct, counts, objective_value
from clara_jax.model.sharding import microbatches
from clara_jax.training.schedules import LOG_TEMPERATURE, Schedule

Leaves = Mapping[str, Any]  # arrays by path, see clara_jax.method.parameters.split


@flax.struct.dataclass
class TrainState:
    """The state that a step changes. Frozen parameters are not in it: they get no gradient and no optimizer state."""

    step: jax.Array  # int32 []
    trained: Leaves
    optimizer: Any


def init_state(trained: Leaves, optimizer: optax.GradientTransformation, step: int = 0) -> TrainState:
    """Return the state before step ``step``, of a fresh optimizer; its moments are placed as their parameters are."""
    # Step takes the buffers of its state: the caller's arrays stay whole.
    trained = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(step), trained, jax.jit(optimizer.init)(trained))


def make_train_step(
    model: ClaraModel,
    stage: Stage,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    schedules: Mapping[str, Schedule] = MappingProxyType({}),
) -> Callable[[TrainState, Leaves, Batch, jax.Array], tuple[TrainState, Terms]]:
    """Make the jitted train step ``(state, frozen, batch, key) -> (state, metrics)``; the state is donated.

    ``key`` is the run's: the step and each example's number are folded in here, so that dropout is the same however the
    batch is sharded or accumulated and wherever a run was resumed. Metrics are float32 scalars: "loss", every term of
    the stage as a mean, "grad_norm" before clipping, "grad_norm/<subtree>" and "update_norm/<subtree>" (after clipping
    and optimizer, learning rate included), and the bool "finite"; and each number of the objective that changes:
    ``schedules`` give them for each step, and the temperature may be among what is trained (`LOG_TEMPERATURE`).

    Where loss or gradient is not finite, parameters and moments stay as they were, since the host learns of it a step
    later. Step counters go on, so that schedule and data stay in step.
    """
    # Jitted, so that asking for its shapes and running it trace it once.
    gradient = jax.jit(jax.value_and_grad(make_loss(model, stage, objective), has_aux=True))

    def step(state: TrainState, frozen: Leaves, batch: Batch, key: jax.Array) -> tuple[TrainState, Terms]:
        keys = example_keys(jax.random.fold_in(key, state.step), batch.example_ids)
        counted = counts(batch, objective.ce_over)
        numbers = {name: schedule(state.step) for name, schedule in schedules.items()}
        # Before the batch is split: a document that stands in several of its parts is compressed once, too.
        batch = compress_distinct(model, merge(state.trained, frozen), batch, accumulate)
        if accumulate == 1:
            (loss, terms), grads = gradient(state.trained, frozen, batch, counted, keys, numbers)
        else:
            parts = jax.tree.map(lambda x: microbatches(x, accumulate), (batch, keys))

            def part_gradient(part: tuple[Batch, jax.Array]) -> Any:
                return gradient(state.trained, frozen, part[0], counted, part[1], numbers)

            # From zeros, not from the first part's: the program holds one gradient, and compiles in half of the time.
            shapes, _ = jax.eval_shape(lambda parts: part_gradient(jax.tree.map(lambda x: x[0], parts)), parts)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total = zeros, jax.tree.map(jnp.zeros_like, state.trained)

            def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, part_gradient(part)), None

            ((loss, terms), grads), _ = jax.lax.scan(add, total, parts)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moments = optimizer.update(grads, state.optimizer, state.trained)
        trained = _where(finite, optax.apply_updates(state.trained, updates), state.trained)
        moments = _where(finite, moments, state.optimizer)
        norms = subtree_norms("grad_norm", grads) | subtree_norms("update_norm", cast(Leaves, updates))
        metrics = {"loss": loss, **terms, "grad_norm": norm, **norms, "finite": finite}
        metrics |= numbers | _learned(state.trained)
        return TrainState(state.step + 1, trained, moments), metrics

    return jax.jit(step, donate_argnums=0)


def make_loss(model: ClaraModel, stage: Stage, objective: Objective) -> Callable[..., tuple[jax.Array, Terms]]:
    """Make the loss ``(trained, frozen, batch, counted, keys, numbers={}) -> (loss, terms)``.

    It is to be differentiated in ``trained`` alone; ``numbers`` replace the objective's of their names.
    """

    def loss(
        trained: Leaves,
        frozen: Leaves,
        batch: Batch,
        counted: Terms,
        keys: jax.Array | None,
        numbers: Mapping[str, jax.Array] = MappingProxyType({}),
    ):
        current = dataclasses.replace(objective, **numbers, **_learned(trained))
        terms = stage.loss(model, merge(trained, frozen), batch, current, keys)
        return objective_value(stage, objective, terms, counted)

    return loss


def make_eval_step(
    model: ClaraModel, stage: Stage, objective: Objective
) -> Callable[[Leaves, Leaves, Batch], tuple[Terms, Terms]]:
    """Make the jitted evaluation step ``(trained, frozen, batch, numbers={}) -> (sums of the terms, their counts)``.

    There is no dropout. Add both results over batches. ``numbers`` replace the objective's of their names.
    """

    def step(
        trained: Leaves, frozen: Leaves, batch: Batch, numbers: Mapping[str, jax.Array] = MappingProxyType({})
    ) -> tuple[Terms, Terms]:
        current = dataclasses.replace(objective, **numbers, **_learned(trained))
        return stage.loss(model, merge(trained, frozen), batch, current, None), counts(batch, objective.ce_over)

    return jax.jit(step)


def make_gradient_step(
    model: ClaraModel, objective: Objective
) -> Callable[[Leaves, Leaves, Batch], tuple[Terms, Terms]]:
    """Make the jitted step that evaluates `gradient_terms` as `make_eval_step` does the loss's terms."""

    def step(trained: Leaves, frozen: Leaves, batch: Batch) -> tuple[Terms, Terms]:
        current = dataclasses.replace(objective, **_learned(trained))
        return gradient_terms(model, merge(trained, frozen), batch, current)

    return jax.jit(step)


def compiled_programs(function: Callable) -> int:
    """Return how many programs a jitted function has been compiled to."""
    return function._cache_size()  # pyright: ignore[reportFunctionMemberAccess] - JAX's types leave it out


def _learned(trained: Leaves) -> Terms:
    """Return the numbers of the objective that are trained: the temperature, if it is."""
    return {"temperature": jnp.exp(trained[LOG_TEMPERATURE])} if LOG_TEMPERATURE in trained else {}


def example_keys(key: jax.Array, example_ids: Array) -> jax.Array:
    """Return a PRNG key for each example, shaped as ``example_ids``: [B, S]."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
    return fold(key, example_ids)


def subtree_norms(name: str, leaves: Leaves) -> Terms:
    """Return the Euclidean norm of each subtree: ``{"<name>/lora/generator": ..., "<name>/base": ...}``."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in leaves.items():
        top, below, *_ = path.split("/")
        groups.setdefault(top if top == "base" else f"{top}/{below}", []).append(leaf)
    return {f"{name}/{group}": optax.tree.norm(members) for group, members in groups.items()}


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    """Return ``new`` where the condition holds, else ``old``; counters (integers) are new in any case."""
    return jax.tree.map(
        lambda n, o: jnp.where(condition, n, o) if jnp.issubdtype(n.dtype, jnp.inexact) else n, new, old
    )
