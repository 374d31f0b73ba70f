"""One stage of a run: its steps, with evaluations, metrics and checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.run import CheckpointWriter
from clara_jax.chips import peak_flops
from clara_jax.distributed import Agreement, is_main, say
from clara_jax.errors import ClaraError, warn_line
from clara_jax.input_pipeline.batches import MemoryReader
from clara_jax.input_pipeline.distinct import document_numbers, planned_counts
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.rates import make_rate, with_fewer
from clara_jax.input_pipeline.records import TEXT_STAGES
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.method.generator import TOKENS
from clara_jax.method.parameters import MAP, flatten, merge, split, unflatten
from clara_jax.method.stages import Terms, calibrate, inherit
from clara_jax.method.topk import DEGENERATE
from clara_jax.metrics.controls import HELD_OUT_CONTROLS
from clara_jax.model.sharding import batch_shards, local_parts, local_rows, put_rows
from clara_jax.training.config import RunConfig
from clara_jax.training.evaluate import Evaluation
from clara_jax.training.metrics import MetricWriter, NoMetricWriter, Progress, device_memory
from clara_jax.training.optimizer import learning_rate_schedule, make_optimizer
from clara_jax.training.profile import Profile
from clara_jax.training.resume import Start, load_optimizer, load_temperature, named_optimizer
from clara_jax.training.run_directory import write_json
from clara_jax.training.schedules import LOG_TEMPERATURE, scaffold_at, schedules
from clara_jax.training.stage_data import StageData
from clara_jax.training.step import compiled_programs, init_state, make_train_step
from clara_jax.training.stopping import Stopped, StopSignal
from clara_jax.training.stored_memories import open_memories
from clara_jax.training.throughput import step_flops

START_STRENGTH = 0.02  # of the states in a memory that starts on a scaffold


class StageRun:
    """One stage of a run, from a position in it to its end."""

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        start: Start,
        data: StageData,
        metrics: MetricWriter | NoMetricWriter,
        checkpoints: CheckpointWriter,
        stop: StopSignal,
    ):
        """Prepare the stage: memories, batches, the state and the jitted step.

        Raises:
          ClaraError: memories of another compressor, or that cannot be read or written.
          Stopped: ``stop`` was set while documents are compressed; the memories of the finished ones are kept.
        """
        bundle, position = start.bundle, start.position
        self.config, self.workdir, self.data, self.position = config, workdir, data, position
        self.metrics, self.checkpoints, self.stop, self.bundle = metrics, checkpoints, stop, bundle
        self.stage_config = stage_config = config.stages[position.number]
        self.stage, self.name = stage_config.stage, stage_config.name
        self.steps = stage_config.total_steps(len(data.examples))
        plan = BatchPlan(
            data.sizes, data.ladder, stage_config.batch_size, self.steps, config.seed + position.number, data.mixture
        )
        multiple = stage_config.accumulate * batch_shards(bundle.mesh)
        memories = distinct = None
        if stage_config.memories:
            memories = open_memories(stage_config, bundle, data.documents, stop, config.progress, workdir)
        elif stage_config.ranks:
            distinct = planned_counts(plan, document_numbers(data.examples), multiple)
        local_part = partial(local_rows, mesh=bundle.mesh)
        length = bundle.model.clara.doc_max_length
        self.at_rates = (bundle, *(bundle.with_memories(length, rate) for rate in stage_config.further_rates))
        further = [
            make_rate(data.sizes, data.ladder, bundle.tokenizer, at_rate.tokenizer) for at_rate in self.at_rates[1:]
        ]
        self.loader = BatchLoader(
            plan,
            data.examples,
            data.sizes,
            bundle.tokenizer,
            data.row,
            multiple,
            local_part,
            memories,
            distinct,
            further,
        )
        # What this process counts in its rows is taken to be as much in those of every other process.
        self.processes = batch_shards(bundle.mesh) / len(local_parts(bundle.mesh))
        self.batches = self.loader.ahead(position.step, self.steps)
        params = bundle.params if start.checkpoint else inherit(self.stage, bundle.params, bundle.trained)
        trained, self.frozen = split(params, stage_config.subtrees)
        self.trains = tuple(name for name in stage_config.subtrees if name != MAP or "map" in params["tokens"])
        if MAP in self.trains and MAP not in bundle.trained and not start.checkpoint:
            trained |= self._calibrated(params)
        if stage_config.learn_temperature:
            at_start = self._place(np.float32(math.log(stage_config.temperature)))
            trained[LOG_TEMPERATURE] = load_temperature(start.checkpoint, at_start)
        optimizer = make_optimizer(stage_config, self.steps)
        self.state = init_state(trained, optimizer, position.step)
        if start.checkpoint:
            optimizer_state = load_optimizer(start.checkpoint, self.state.optimizer)
            self.state = dataclasses.replace(self.state, optimizer=optimizer_state)
        # All rates at once: asking the device for one in every step would make the host wait for the step before.
        self.rates = np.asarray(jax.vmap(learning_rate_schedule(stage_config, self.steps))(np.arange(self.steps)))
        self.schedules = schedules(stage_config, self.steps)
        self.step_at = [
            make_train_step(
                at_rate.model,
                self.stage,
                stage_config.objective,
                optimizer,
                stage_config.accumulate,
                self.schedules,
            )
            for at_rate in self.at_rates
        ]
        key = jax.random.fold_in(jax.random.key(config.seed), position.number)
        self.key = self._place(key)
        self.evaluations = self._evaluations(memories)
        self.started = time.monotonic() - position.seconds
        self.saved, self.saved_step = time.monotonic(), position.step
        self.agreement = Agreement(bundle.mesh)
        self.pending: tuple[int, Terms, dict[str, Any]] | None = None  # the step under way: number, metrics, facts
        self.loss: float | None = None  # of the newest step that is read

    def _calibrated(self, params: Any) -> dict[str, Any]:
        """Return the leaves of a memory map that is not trained yet, fitted to the stage's first batch."""
        mesh, strength = self.bundle.mesh, START_STRENGTH if self.stage_config.scaffold else 1.0
        placed = put_rows(self.loader.batch(0), mesh)
        with jax.set_mesh(mesh):
            model = self.at_rates[self.loader.rate(0)].model
            fitted = jax.jit(calibrate, static_argnums=(0, 3))(model, params, placed, strength)
            return jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P(None)))(flatten(fitted, f"{MAP}/"))

    def _place(self, value: Any) -> jax.Array:
        """Return a scalar on every device."""
        return jax.device_put(value, jax.NamedSharding(self.bundle.mesh, jax.P()))

    def _evaluations(self, memories: MemoryReader | None) -> dict[str, Evaluation]:
        """Make the evaluations of the held-out records, by the prefix of the names of their values.

        Records of each kind of text (to write out, or to continue) are measured apart from the others; so is each rate.
        """
        stage_config, data, bundle = self.stage_config, self.data, self.bundle
        kinds = [record.kind if record.kind in TEXT_STAGES else "" for record in data.held_out_records]
        found = sorted(set(kinds)) or [""]
        evaluations = {}
        for kind, at_rate in itertools.product(found, self.at_rates):
            chosen = [i for i, other in enumerate(kinds) if other == kind]
            rate = "" if at_rate is bundle else f"rate_{at_rate.model.clara.compress_rate}_"
            counts = bundle.tokenizer.memory_tokens, at_rate.tokenizer.memory_tokens
            examples = [data.held_out[i] for i in chosen]
            evaluations[rate + (f"{kind}_" if kind and len(found) > 1 else "")] = Evaluation(
                at_rate.model,
                self.stage,
                dataclasses.replace(stage_config.objective, ce_over=TOKENS),  # comparable between runs
                at_rate.tokenizer,
                bundle.mesh,
                examples if at_rate is bundle else [with_fewer(example, *counts) for example in examples],
                [data.held_out_records[i] for i in chosen],
                data.encoding,
                stage_config.batch_size // stage_config.accumulate,
                loss_batches=stage_config.eval_batches,
                answers=stage_config.eval_answers,
                max_new_tokens=stage_config.answer_tokens,
                end_ids=bundle.end_ids,
                controls=stage_config.eval_controls,
                gradients=stage_config.eval_gradients,
                memories=memories,
            )
        return evaluations

    def train(self) -> Bundle:
        """Train to the stage's end and return the model.

        Raises:
          ClaraError: a step that is not finite, a checkpoint that cannot be written.
          Stopped: the stop signal was set; the state is saved.
        """
        stage_config, profile = self.stage_config, Profile(self.config.profile, self.workdir / "profile")
        progress = Progress(
            self.steps,
            self.name,
            start=self.position.step,
            enabled=self.config.progress,
            seconds=self.config.progress_seconds,
            devices=self.bundle.mesh.size,
            peak_flops=peak_flops(self.bundle.mesh.devices.flat[0].device_kind),
        )
        with self.stop.deferred(), profile, progress:
            for index in range(self.position.step, self.steps + 1):
                if index in (0, self.steps) or (stage_config.eval_every and index % stage_config.eval_every == 0):
                    self._evaluate(index)
                if index == self.steps:
                    break
                stop, late = self.agreement(self.stop(), self._saved_long_ago())
                every = stage_config.save_every
                if index != self.saved_step and (late or (every and index % every == 0)):
                    self._save()
                if stop:
                    self._stop()
                profile.at(index)
                self._train_step(index, progress)
            self._finish()
        return self._trained_bundle()

    def _train_step(self, index: int, progress: Progress) -> None:
        batch = next(self.batches)
        tokens = round(self.processes * batch.tokens)
        facts = {"learning_rate": self.rates[index], "tokens": tokens, "padding": batch.padding}
        placed = put_rows(batch, self.bundle.mesh)
        rate = self.loader.rate(index)
        step, model = self.step_at[rate], self.at_rates[rate].model
        compiled, began = compiled_programs(step), time.monotonic()
        with jax.transfer_guard("disallow"):
            self.state, values = step(self.state, self.frozen, placed, self.key)
        if compiled_programs(step) > compiled:  # such a call returns when it is compiled, not when it is computed
            facts["compile_seconds"] = time.monotonic() - began
        # While the step is under way, the one before is read and logged, so that the device never waits for the host.
        self._flush()
        flops = step_flops(model.config, model.clara.lora_rank, self.stage.name, self.trains, batch)
        progress.update(loss=self.loss, tokens=tokens, flops=round(self.processes * flops))
        self.pending = (index, values, facts | progress.rates)
        self.position = dataclasses.replace(self.position, step=index + 1)

    def _flush(self) -> None:
        """Read and log the step that is under way."""
        if self.pending is None:
            return
        (index, values, facts), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        finite, self.loss = values.pop("finite"), values["loss"]
        if not finite:
            self._not_finite(index, values)
        if self.config.non_finite == "skip":
            facts = facts | {"skipped": self.position.skipped}
        if self.data.rejected:
            facts = facts | {"rejected": self.data.rejected}
        if index % self.stage_config.log_every == 0:
            self.metrics.write({"stage": self.name, "step": index, **values, **facts})

    def _not_finite(self, index: int, values: dict[str, float]) -> None:
        """Skip a step that is not finite, or end the run, by ``non_finite``; the step changed nothing."""
        name = self.name
        what = f"{name} step {index}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        if self.config.non_finite == "skip":
            self.position = dataclasses.replace(self.position, skipped=self.position.skipped + 1)
            say(f"{what}; the batch is skipped, {self.position.skipped} so far", error=True)
            return
        path = self.workdir / f"non_finite-{name}-{index:08d}.json"
        if is_main():
            records = [example.where for example in self.loader.examples(index)]
            report = {"stage": name, "step": index, "records": records} | {k: str(v) for k, v in values.items()}
            write_json(path, report)
        raise ClaraError(
            f"{what}; lower config.{name}.learning_rate, set config.model.precision=float32, or skip such batches with "
            f"config.non_finite=skip; the batch's records are in {path}"
        )

    def _evaluate(self, index: int) -> None:
        """Measure the held-out values after ``index`` steps, unless the run began from a position that has them."""
        self._flush()
        if self.position.evaluated == index:
            return
        values, numbers = {}, {}
        if "scaffold" in self.schedules:
            numbers["scaffold"] = self._place(np.float32(scaffold_at(self.stage_config, self.steps, index)))
        for prefix, evaluation in self.evaluations.items():
            found = evaluation(self.state.trained, self.frozen, lambda: self.agreement.now(self.stop()), numbers)
            if found is None:
                self._stop()
            values |= {f"{prefix}{name}": value for name, value in found.items()}
        row = {f"eval_{name}": value for name, value in values.items()} | device_memory()
        if values:
            self.metrics.write({"stage": self.name, "step": index, **row})
            say(f"{self.name} step {index}: held-out {describe(values)}")
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no others
        first = values if index == 0 else self.position.first
        self.position = dataclasses.replace(self.position, evaluated=index, first=first, last=values)

    def _saved_long_ago(self) -> bool:
        return time.monotonic() - self.saved > 60 * self.config.save_minutes

    def _save(self, wait: bool = False) -> None:
        self._flush()
        seconds = round(time.monotonic() - self.started, 3)
        self.position = dataclasses.replace(self.position, seconds=seconds, metrics_bytes=self.metrics.sync())
        arrays, metadata, write_extra = self._trained_bundle().contents(self.name)
        metadata |= {"training": dataclasses.asdict(self.position), "finished": self.position.finished}
        metadata |= {"evaluation": self.position.last if self.position.evaluated == self.position.step else {}}
        arrays |= {"optimizer": named_optimizer(self.state.optimizer)}
        if LOG_TEMPERATURE in self.state.trained:
            arrays |= unflatten({LOG_TEMPERATURE: self.state.trained[LOG_TEMPERATURE]})
        place = (self.position.number, self.name, self.position.step)
        self.checkpoints.save(*place, arrays, metadata, write_extra, wait=wait)
        self.saved, self.saved_step = time.monotonic(), self.position.step
        self.agreement.forget()

    def _stop(self) -> NoReturn:
        """Save, wait until the disk holds it, and raise `Stopped`."""
        if self.position.step != self.saved_step:
            self._save(wait=True)
        self.checkpoints.wait()
        raise Stopped(
            f"stopped at {self.name} step {self.position.step} of {self.steps}, saved in {self.workdir}; "
            "the same command goes on from there"
        )

    def _finish(self) -> None:
        """Write the stage's summary and its last checkpoint."""
        self._flush()
        first, last = self.position.first, self.position.last
        seconds = round(time.monotonic() - self.started, 1)
        summary = {"stage": self.name, "steps": self.steps, "seconds": seconds, "top_k": self.stage_config.top_k}
        summary |= {f"held_out_{name}": [first[name], last[name]] for name in last if name in first}
        self.bundle = dataclasses.replace(self.bundle, history=(*self.bundle.history, summary))
        compilations = {
            "compilations": sum(compiled_programs(step) for step in self.step_at),
            "evaluation_compilations": sum(evaluation.compilations for evaluation in self.evaluations.values()),
        }
        self.metrics.write({**summary, **compilations, **device_memory(), "finished": True})
        self.position = dataclasses.replace(self.position, finished=True)
        self._save()
        self._warn_of_scaffold()

    def _warn_of_scaffold(self) -> None:
        """Warn where the stage ends with a scaffold, which is absent at inference."""
        left = scaffold_at(self.stage_config, self.steps, self.steps)
        if left < 1e-6 or not is_main():
            return
        following = self.config.stages[self.position.number + 1 :]
        later = next((stage for stage in following if stage.has_scaffold and stage.scaffold_end == 0), None)
        if later:
            do = f"{later.name} is to take it away: use no checkpoint from before its end"
        else:
            do = f"set config.{self.name}.scaffold_end=0, or train a stage from here that has scaffold_end=0"
        warn_line(
            f"{self.name} ended with scaffold {left:g}: the generator reads memories that lean on it, and in use there "
            f"is none; {do}"
        )

    def _trained_bundle(self) -> Bundle:
        trained = self.state.trained
        changed = set(self.bundle.base_overrides) | {name for name in self.trains if name.split("/")[0] == "base"}
        return dataclasses.replace(
            self.bundle,
            params=merge({path: leaf for path, leaf in trained.items() if path != LOG_TEMPERATURE}, self.frozen),
            base_overrides=("base",) if "base" in changed else tuple(sorted(changed)),
            trained=tuple(sorted(set(self.bundle.trained) | set(self.trains))),
        )


def describe(values: Mapping[str, float]) -> str:
    """Return held-out values in one line, each with its controls."""
    parts = []
    for name, value in values.items():
        if name.endswith(tuple(HELD_OUT_CONTROLS)) or (name in DEGENERATE and not value):
            continue
        controls = [
            f"{label} {values[f'{name}_{end}']:.4f}"
            for end, label in HELD_OUT_CONTROLS.items()
            if f"{name}_{end}" in values
        ]
        parts.append(f"{name} {value:.4f}" + (f" ({', '.join(controls)})" if controls else ""))
    return ", ".join(parts)
