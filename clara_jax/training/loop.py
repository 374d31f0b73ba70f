"""A run: its stages in order, each from where the one before stopped, each ending in a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax import bundle as bundles
from clara_jax.bundle import Bundle
from clara_jax.checkpoints.run import checkpoint_directory
from clara_jax.data.batches import BatchPlan, Example, Shapes, collate, encode_records, plan_shapes
from clara_jax.data.records import read_records
from clara_jax.errors import ClaraError
from clara_jax.method.parameters import merge, split
from clara_jax.method.stages import STAGES, Objective, Stage, inherit, objective_value
from clara_jax.model.sharding import check_batch, make_mesh, put_batch
from clara_jax.training.config import RunConfig, StageConfig, data_files, to_json
from clara_jax.training.metrics import MetricWriter, Progress
from clara_jax.training.optimizer import learning_rate_schedule, make_optimizer
from clara_jax.training.step import init_state, make_eval_step, make_train_step


def run(config: RunConfig, workdir: Path) -> Bundle:
    """Trains every stage of a configuration.

    The run directory gets ``config.json`` (resolved), ``metrics.jsonl`` and ``checkpoints/<NN>-<stage>``.

    Raises:
      ClaraError: bad configuration, data or base, a directory that holds a run already, a loss that is not finite.
    """
    mesh = make_mesh(*config.mesh)
    for stage in config.stages:
        check_batch(stage.batch_size // stage.accumulate, mesh, f"config.{stage.name}.batch_size / accumulate")
    if (workdir / "config.json").exists():
        raise ClaraError(
            f"{workdir}: holds a run already; name another directory with --workdir, or start from it with --config.initial_checkpoint={workdir}"
        )
    # All data is read before the first step: a bad line in the last stage's file should not cost the stages before it.
    data = [_read(stage) for stage in config.stages]
    bundle = _start(config, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(to_json(config), indent=2) + "\n", encoding="utf-8")
    with jax.set_mesh(mesh), MetricWriter(workdir / "metrics.jsonl") as metrics:
        for number, (stage, (train, held_out)) in enumerate(zip(config.stages, data, strict=True)):
            bundle = run_stage(config, number, stage, bundle, train, held_out, metrics)
            bundle.save(checkpoint_directory(workdir, number, stage.name), stage.name)
    return bundle


def run_stage(
    config: RunConfig,
    number: int,
    stage_config: StageConfig,
    bundle: Bundle,
    train: Sequence[Any],
    held_out: Sequence[Any],
    metrics: MetricWriter,
) -> Bundle:
    """Trains one stage and returns the bundle it leaves.

    Args:
      number: its place in the run.
      train, held_out: records; the held-out loss is taken before the first step, after the last, and every
        ``eval_every`` steps.
    """
    stage, model, mesh = STAGES[stage_config.name], bundle.model, bundle.mesh
    objective = Objective(
        stage_config.mse_weight, stage_config.mse_reduction, stage_config.top_k, stage_config.temperature
    )
    trains = stage_config.trains or stage.trains
    trained, frozen = split(inherit(stage, bundle.params, bundle.trained), trains)
    training, shapes = _encode(train, bundle, stage_config, config.seed)
    evaluation = _held_out_batches(held_out, bundle, stage_config, config.seed)
    steps = stage_config.total_steps(len(training))
    plan = BatchPlan(len(training), stage_config.batch_size, config.seed + number)
    optimizer = make_optimizer(stage_config, steps)
    schedule = learning_rate_schedule(stage_config, steps)
    state = init_state(trained, optimizer)
    step = make_train_step(model, stage, objective, optimizer, stage_config.accumulate)
    eval_step = make_eval_step(model, stage, objective)
    key = jax.device_put(jax.random.fold_in(jax.random.key(config.seed), number), jax.NamedSharding(mesh, jax.P()))

    def evaluate(at: int) -> dict[str, float]:
        values = _evaluate(eval_step, stage, objective, state.trained, frozen, evaluation, mesh)
        if values:
            metrics.write(
                {"stage": stage.name, "step": at, **{f"eval_{name}": value for name, value in values.items()}}
            )
            print(
                f"{stage.name} step {at}: held-out "
                + ", ".join(f"{name} {value:.4f}" for name, value in values.items()),
                flush=True,
            )
        return values

    first = evaluate(0)
    last, pending = first, None
    started = time.monotonic()
    with Progress(steps, stage.name, enabled=config.progress, seconds=config.progress_seconds) as progress:
        for index in range(steps):
            rows = plan.rows(index)
            batch = collate([training[row] for row in rows], shapes, bundle.tokenizer)
            tokens = int(
                batch.document_mask.sum()
                + batch.prompt_mask.sum()
                + (0 if batch.query_mask is None else batch.query_mask.sum())
            )
            with jax.transfer_guard("disallow"):
                state, values = step(state, frozen, put_batch(batch, mesh), key)
            # The step is under way; meanwhile the one before is read and logged, so the device never waits for the host.
            loss = None
            if pending is not None:
                loss = _log(metrics, stage_config, pending, progress)
            pending = (index, values, float(schedule(index)), tokens)
            progress.update(loss=loss, tokens=tokens)
            if stage_config.eval_every and (index + 1) % stage_config.eval_every == 0 and index + 1 < steps:
                last = evaluate(index + 1)
        _log(metrics, stage_config, pending, progress)
    last = evaluate(steps)
    summary = {
        "stage": stage.name,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "compilations": step._cache_size(),
    }
    summary |= {f"held_out_{name}": [first[name], last[name]] for name in last}
    metrics.write({**summary, "finished": True})
    own = set(bundle.own) | {name for name in trains if name.split("/")[0] == "base"}
    return dataclasses.replace(
        bundle,
        params=merge(state.trained, frozen),
        own=("base",) if "base" in own else tuple(sorted(own)),
        trained=tuple(sorted(set(bundle.trained) | set(trains))),
        history=(*bundle.history, summary),
    )


def _start(config: RunConfig, mesh: jax.sharding.Mesh) -> Bundle:
    precision, remat = config.model.precision, config.model.remat
    if config.initial_checkpoint:
        bundle = bundles.load(config.initial_checkpoint, mesh, config.model.base or None, precision, remat)
        _same_shape(config, bundle)
        return dataclasses.replace(
            bundle,
            model=dataclasses.replace(
                bundle.model, clara=dataclasses.replace(bundle.model.clara, lora_dropout=config.clara.lora_dropout)
            ),
        )
    return bundles.from_base(config.model.base, config.clara, mesh, precision, remat, config.seed)


def _same_shape(config: RunConfig, bundle: Bundle) -> None:
    """A checkpoint brings its own sizes; a configuration that says otherwise is a mistake."""
    for field in ("doc_max_length", "compress_rate", "lora_rank", "different_mem_tokens"):
        have, asked = getattr(bundle.model.clara, field), getattr(config.clara, field)
        if have != asked:
            raise ClaraError(
                f"config.clara.{field} is {asked!r}, but the checkpoint {config.initial_checkpoint} was made with {have!r}; set it to that"
            )


def _read(stage: StageConfig) -> tuple[list[Any], list[Any]]:
    train = read_records(data_files(stage.train_data, f"config.{stage.name}.train_data"), stage.name, stage.train_limit)
    if not stage.eval_data:
        return train, []
    return train, read_records(
        data_files(stage.eval_data, f"config.{stage.name}.eval_data"), stage.name, stage.eval_limit
    )


def _encode(records: Sequence[Any], bundle: Bundle, stage: StageConfig, seed: int) -> tuple[list[Example], Shapes]:
    """Token ids of all records, and the one shape that holds every batch of them: a stage compiles once."""
    examples = encode_records(records, bundle.tokenizer, stage.name, stage.top_k, stage.candidates, seed)
    return examples, plan_shapes(examples, bundle.tokenizer)


def _held_out_batches(records: Sequence[Any], bundle: Bundle, stage: StageConfig, seed: int) -> list[Any]:
    if not records:
        return []
    examples, shapes = _encode(records, bundle, stage, seed)
    size = stage.batch_size // stage.accumulate
    starts = range(0, len(examples), size)[: stage.eval_batches]
    return [collate(examples[start : start + size], shapes, bundle.tokenizer, size) for start in starts]


def _evaluate(eval_step, stage: Stage, objective: Objective, trained, frozen, batches, mesh) -> dict[str, float]:
    """Means over all held-out examples: the loss and its terms."""
    if not batches:
        return {}
    totals = [jax.device_get(eval_step(trained, frozen, put_batch(batch, mesh))) for batch in batches]
    sums, counted = jax.tree.map(lambda *values: np.sum(np.float64(values)), *totals)
    loss, means = objective_value(stage, objective, sums, counted)
    return {"loss": float(loss), **{name: float(value) for name, value in means.items()}}


def _log(metrics: MetricWriter, stage: StageConfig, pending: tuple, progress: Progress) -> float:
    index, values, learning_rate, tokens = pending
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
        raise ClaraError(
            f"{stage.name} step {index}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; lower config.{stage.name}.learning_rate or train with config.model.precision=float32"
        )
    if index % stage.log_every == 0:
        rate = progress.tokens_per_second
        metrics.write(
            {
                "stage": stage.name,
                "step": index,
                **values,
                "learning_rate": learning_rate,
                "tokens": tokens,
                "tokens_per_second": rate and round(rate),
            }
        )
    return values["loss"]
