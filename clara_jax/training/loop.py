"""A run: its stages in order, each from where the one before stopped, each ending in a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from clara_jax import bundle as bundles
from clara_jax.bundle import Bundle
from clara_jax.checkpoints.run import checkpoint_directory
from clara_jax.data.batches import Batch, BatchPlan, Example, Shapes, collate, encode_records, plan_shapes
from clara_jax.data.records import Record, read_records
from clara_jax.errors import ClaraError
from clara_jax.method.parameters import merge, split
from clara_jax.method.stages import STAGES, Objective, Stage, Terms, inherit, objective_value
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
            f"{workdir}: holds a run already; name another directory with --workdir, or start from this one with "
            f"--config.initial_checkpoint={workdir}"
        )
    # Everything that can be wrong is looked at before the first step: a bad line in the last stage's file, or a subtree
    # that does not exist, should not cost the stages before it.
    records = [_read(stage) for stage in config.stages]
    _say(config, f"opening {config.initial_checkpoint or config.model.base}")
    bundle = _start(config, mesh)
    config = dataclasses.replace(config, clara=bundle.model.clara)
    for stage in config.stages:
        split(bundle.params, stage.trains or STAGES[stage.name].trains)
    data = [_prepare(config, stage, bundle, *own) for stage, own in zip(config.stages, records, strict=True)]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(to_json(config), indent=2) + "\n", encoding="utf-8")
    with jax.set_mesh(mesh), MetricWriter(workdir / "metrics.jsonl") as metrics:
        for number, (stage, own) in enumerate(zip(config.stages, data, strict=True)):
            bundle = run_stage(config, number, stage, bundle, own, metrics)
            bundle.save(checkpoint_directory(workdir, number, stage.name), stage.name)
    return bundle


@dataclasses.dataclass(frozen=True)
class StageData:
    """A stage's records, tokenized, and the one shape that holds every batch of them: a stage compiles once."""

    examples: Sequence[Example]
    shapes: Shapes
    held_out: Sequence[Batch]


def run_stage(
    config: RunConfig, number: int, stage_config: StageConfig, bundle: Bundle, data: StageData, metrics: MetricWriter
) -> Bundle:
    """Trains one stage and returns the bundle it leaves.

    The held-out loss is taken before the first step, after the last, and every ``eval_every`` steps. ``number`` is the
    stage's place in the run.
    """
    stage, model, mesh = STAGES[stage_config.name], bundle.model, bundle.mesh
    objective = stage_config.objective
    trains = stage_config.trains or stage.trains
    trained, frozen = split(inherit(stage, bundle.params, bundle.trained), trains)
    examples, shapes = data.examples, data.shapes
    steps = stage_config.total_steps(len(examples))
    plan = BatchPlan(len(examples), stage_config.batch_size, config.seed + number)
    optimizer = make_optimizer(stage_config, steps)
    # All rates at once: asking the device for one in every step would make the host wait for the step before.
    rates = np.asarray(jax.vmap(learning_rate_schedule(stage_config, steps))(np.arange(steps)))
    state = init_state(trained, optimizer)
    step = make_train_step(model, stage, objective, optimizer, stage_config.accumulate)
    eval_step = make_eval_step(model, stage, objective)
    key = jax.device_put(jax.random.fold_in(jax.random.key(config.seed), number), jax.NamedSharding(mesh, jax.P()))

    def evaluate(at: int) -> dict[str, float]:
        values = _evaluate(eval_step, stage, objective, state.trained, frozen, data.held_out, mesh)
        if values:
            metrics.write({"stage": stage.name, "step": at} | {f"eval_{name}": x for name, x in values.items()})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"{stage.name} step {at}: held-out {shown}", flush=True)
        return values

    def log(index: int, values: Terms, tokens: int) -> float:
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        if not math.isfinite(values["loss"] + values["grad_norm"]):
            records = ", ".join(examples[row].where for row in plan.rows(index))
            raise ClaraError(
                f"{stage.name} step {index}: loss {values['loss']}, gradient norm {values['grad_norm']}; lower "
                f"config.{stage.name}.learning_rate or set config.model.precision=float32; the batch was {records}"
            )
        if index % stage_config.log_every == 0:
            speed = {"learning_rate": rates[index], "tokens": tokens, "tokens_per_second": progress.tokens_per_second}
            metrics.write({"stage": stage.name, "step": index, **values, **speed})
        return values["loss"]

    first = last = evaluate(0)
    started, pending, loss = time.monotonic(), None, None
    with Progress(steps, stage.name, enabled=config.progress, seconds=config.progress_seconds) as progress:
        for index in range(steps):
            batch = collate([examples[row] for row in plan.rows(index)], shapes, bundle.tokenizer)
            with jax.transfer_guard("disallow"):
                state, values = step(state, frozen, put_batch(batch, mesh), key)
            # The step is under way; meanwhile the one before is read and logged: the device never waits for the host.
            if pending is not None:
                loss = log(*pending)
            pending = (index, values, batch.tokens)
            progress.update(loss=loss, tokens=batch.tokens)
            if stage_config.eval_every and (index + 1) % stage_config.eval_every == 0 and index + 1 < steps:
                loss, pending = log(*pending), None
                last = evaluate(index + 1)
        log(*pending)
    last = evaluate(steps)
    summary = {"stage": stage.name, "steps": steps, "seconds": round(time.monotonic() - started, 1)}
    summary |= {f"held_out_{name}": [first[name], last[name]] for name in last}
    metrics.write({**summary, "compilations": step._cache_size(), "finished": True})
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
    if not config.initial_checkpoint:
        return bundles.from_base(config.model.base, config.clara, mesh, precision, remat, config.seed)
    bundle = bundles.load(config.initial_checkpoint, mesh, config.model.base or None, precision, remat)
    _same_shape(config, bundle)
    return bundle.with_limits(config.clara.max_length, config.clara.lora_dropout)


def _same_shape(config: RunConfig, bundle: Bundle) -> None:
    """A checkpoint brings its own sizes; a configuration that says otherwise is a mistake."""
    for field in ("doc_max_length", "compress_rate", "lora_rank", "lora_alpha", "different_mem_tokens"):
        have, asked = getattr(bundle.model.clara, field), getattr(config.clara, field)
        if have != asked:
            raise ClaraError(
                f"config.clara.{field} is {asked!r}, but the checkpoint {config.initial_checkpoint} was made with "
                f"{have!r}; set it to that"
            )


def _read(stage: StageConfig) -> tuple[list[Record], list[Record]]:
    def records(field: str, limit: int | None) -> list[Record]:
        patterns = getattr(stage, field)
        return read_records(data_files(patterns, f"config.{stage.name}.{field}"), stage.name, limit) if patterns else []

    return records("train_data", stage.train_limit), records("eval_data", stage.eval_limit)


def _prepare(
    config: RunConfig, stage: StageConfig, bundle: Bundle, train: Sequence[Record], held_out: Sequence[Record]
) -> StageData:
    def encode(records: Sequence[Record]) -> tuple[list[Example], Shapes]:
        # Held-out records are formed as the training records are, positives kept among the candidates: the loss on them
        # is the training objective on what was not trained on.
        examples = encode_records(records, bundle.tokenizer, stage.name, stage.top_k, stage.candidates, config.seed)
        return examples, plan_shapes(examples, bundle.tokenizer)

    examples, shapes = encode(train)
    batches = []
    if held_out:
        others, other_shapes = encode(held_out)
        size = stage.batch_size // stage.accumulate
        starts = range(0, len(others), size)[: stage.eval_batches]
        batches = [collate(others[start : start + size], other_shapes, bundle.tokenizer, size) for start in starts]
    _say(config, f"{stage.name}: {len(train)} training records, {len(held_out)} held-out ones; {shapes}")
    return StageData(examples, shapes, batches)


def _evaluate(eval_step, stage: Stage, objective: Objective, trained, frozen, batches, mesh) -> dict[str, float]:
    """Means over all held-out examples: the loss and its terms."""
    if not batches:
        return {}
    totals = [jax.device_get(eval_step(trained, frozen, put_batch(batch, mesh))) for batch in batches]
    sums, counted = jax.tree.map(lambda *values: np.sum(np.float64(values)), *totals)
    loss, means = objective_value(stage, objective, sums, counted)
    return {"loss": float(loss), **{name: float(value) for name, value in means.items()}}


def _say(config: RunConfig, line: str) -> None:
    if config.progress:
        print(line, file=sys.stderr, flush=True)
