"""One stage of a run: its data, state, evaluator and checkpointer, then its steps."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.opening import reset
from clara_jax.checkpoints.retention import checkpoint_directory
from clara_jax.checkpoints.run import CheckpointWriter
from clara_jax.chips import peak_flops
from clara_jax.distributed import Agreement, is_main, say
from clara_jax.errors import warn_line
from clara_jax.method.parameters import MAP, flatten, merge, split, unflatten
from clara_jax.method.stages import calibrate, inherit
from clara_jax.model.sharding import put_rows, put_whole
from clara_jax.training.config import RunConfig
from clara_jax.training.corpus_search import CorpusSearch
from clara_jax.training.goodput import Goodput
from clara_jax.training.metrics import MetricWriter, NoMetricWriter, Progress
from clara_jax.training.optimizer import learning_rate_schedule, make_optimizer
from clara_jax.training.profile import Profile
from clara_jax.training.resume import Start, load_optimizer, load_temperature, named_optimizer
from clara_jax.training.schedules import LOG_TEMPERATURE, scaffold_at, schedules
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stage_data import StageBatches, StageData
from clara_jax.training.stage_evaluator import StageEvaluator
from clara_jax.training.stage_log import StageLog
from clara_jax.training.step import TrainState, compiled_programs, init_state, make_train_step
from clara_jax.training.stopping import Stopped, StopSignal
from clara_jax.training.throughput import step_flops

RESET = np.uint32(2**32 - 1)  # is folded into a stage's key for what it starts afresh; steps have lower numbers
START_STRENGTH = 0.02  # of the states in a memory that starts on a scaffold


def train_stage(
    config: RunConfig,
    workdir: Path,
    start: Start,
    data: StageData,
    metrics: MetricWriter | NoMetricWriter,
    checkpoints: CheckpointWriter,
    stop: StopSignal,
    goodput: Goodput,
) -> Bundle:
    """Train one stage of a run, from a position in it to its end, and return the model.

    Raises:
      ClaraError: memories of another compressor, or that cannot be read or written; a step that is not finite; a
        checkpoint that cannot be written.
      Stopped: ``stop`` was set; the state is saved, or, while documents are compressed, the finished memories are.
    """
    first, number = start.position.step, start.position.number
    mesh, stage = start.bundle.mesh, config.stages[number]
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    if not start.checkpoint:  # which has been reset
        start = start._replace(bundle=reset(start.bundle, stage.reset, jax.random.fold_in(key, RESET)))
    bundle = start.bundle
    steps = stage.optimizer.total_steps(len(data.examples))

    # Data: the batch of each step, and the model at the rate that it has.
    with goodput.measure("compressing" if stage.data.memories else "starting"):
        batches = StageBatches.plan(config, workdir, number, bundle, data, steps, stop)
    loader, search = batches.loader, batches.search
    if search is not None and start.checkpoint and not search.due(first):
        search.restore(start.checkpoint)
    upcoming = loader.ahead(first, steps) if search is None else search.batches(first, loader)

    # State: what is trained, from a checkpoint or from the stage before, with its optimizer; the rest is frozen.
    trained, frozen = _parameters(start, stage, batches)
    optimizer = make_optimizer(stage.optimizer, steps)
    state = init_state(trained, optimizer, first)
    if start.checkpoint:
        state = dataclasses.replace(state, optimizer=load_optimizer(start.checkpoint, state.optimizer))
    key = put_whole(key, mesh)
    # All learning rates at once: asking the device for one in every step would make the host wait for the step before.
    learning_rates = np.asarray(jax.vmap(learning_rate_schedule(stage.optimizer, steps))(np.arange(steps)))
    parts, changing = stage.optimizer.accumulate, schedules(stage, steps)
    step_at = [
        make_train_step(at_rate.model, stage.stage, stage.hyperparameters, optimizer, parts, changing)
        for at_rate in batches.at_rates
    ]

    # Evaluator, and checkpointer with the log of the steps.
    evaluator = StageEvaluator(stage, bundle, data, batches, steps, config.reporting)
    log = StageLog(config, workdir, start.position, metrics, data.rejected, loader)
    trains = tuple(name for name in stage.subtrees if name != MAP or "map" in bundle.params["tokens"])
    agreement = Agreement(mesh)
    checkpointer = _Checkpointer(config, workdir, bundle, trains, frozen, log, checkpoints, agreement, search, goodput)

    # Steps.
    profile = Profile(config.reporting.profile, workdir / "profile")
    progress = Progress(
        steps,
        stage.name,
        start=first,
        enabled=config.reporting.progress,
        seconds=config.reporting.progress_seconds,
        devices=mesh.size,
        peak_flops=peak_flops(mesh.devices.flat[0].device_kind),
    )
    with stop.deferred(), profile, progress, goodput.measure("steps"):
        for step in range(first, steps + 1):
            if evaluator.due(step):
                log.read()
                if log.position.evaluated != step:  # unless the run began from a position that has it
                    with goodput.measure("evaluating"):
                        values = evaluator(step, state.trained, frozen, lambda: agreement.now(stop()))
                    if values is None:
                        raise checkpointer.stopped(state, steps)
                    log.evaluated(values)
            if step == steps:
                break
            stopping, late = agreement(stop(), checkpointer.late)
            if checkpointer.due(step, late):
                checkpointer.save(state)
            if stopping:
                raise checkpointer.stopped(state, steps)
            profile.at(step)
            if search is not None and search.due(step):
                with goodput.measure("compressing"):
                    search.draw(step, merge(state.trained, frozen), loader)
                upcoming = search.batches(step, loader)
            with goodput.measure("data"):
                batch, rate = next(upcoming), loader.rate(step)
            tokens = round(batches.processes * batch.tokens)
            facts = {"learning_rate": learning_rates[step], "tokens": tokens, "padding": batch.padding}
            placed, train_step, model = put_rows(batch, mesh), step_at[rate], batches.at_rates[rate].model
            compiled, began = compiled_programs(train_step), time.monotonic()
            with jax.transfer_guard("disallow"):
                state, values = train_step(state, frozen, placed, key)
            if compiled_programs(train_step) > compiled:  # such a call returns when it is compiled, not when computed
                facts["compile_seconds"] = time.monotonic() - began
                goodput.move("compiling", facts["compile_seconds"])
            log.read()  # of the step before, while this one is under way
            flops = step_flops(model.config, model.clara.lora_rank, stage.name, trains, batch)
            progress.update(loss=log.loss, tokens=tokens, flops=round(batches.processes * flops))
            log.step(values, facts | progress.rates)
        log.read()
        compilations = {
            "compilations": sum(compiled_programs(train_step) for train_step in step_at),
            "evaluation_compilations": evaluator.compilations,
        }
        finished = checkpointer.finish(state, log.finish(compilations))
        _warn_of_scaffold(config, number, steps)
    goodput.write()
    say(f"{stage.name}: {goodput.line()}")
    return finished


def _parameters(start: Start, stage: StageConfig, batches: StageBatches) -> tuple[dict[str, Any], Any]:
    """Return what a stage trains, by path, and the parameters that are frozen, as the stage begins or goes on."""
    bundle = start.bundle
    params = bundle.params if start.checkpoint else inherit(stage.stage, bundle.params, bundle.trained)
    trained, frozen = split(params, stage.subtrees)
    if MAP in stage.subtrees and "map" in params["tokens"] and MAP not in bundle.trained and not start.checkpoint:
        trained |= _calibrated(params, stage, batches)
    if stage.topk.learn_temperature:
        at_start = put_whole(np.float32(math.log(stage.topk.temperature)), bundle.mesh)
        trained[LOG_TEMPERATURE] = load_temperature(start.checkpoint, at_start)
    return trained, frozen


def _calibrated(params: Any, stage: StageConfig, batches: StageBatches) -> dict[str, Any]:
    """Return the leaves of a memory map that is not trained yet, fitted to the stage's first batch."""
    bundle, strength = batches.at_rates[0], START_STRENGTH if stage.objective.scaffold else 1.0
    placed = put_rows(batches.loader.batch(0), bundle.mesh)
    with jax.set_mesh(bundle.mesh):
        model = batches.at_rates[batches.loader.rate(0)].model
        fitted = jax.jit(calibrate, static_argnums=(0, 3))(model, params, placed, strength)
        whole = jax.NamedSharding(bundle.mesh, jax.P(None))
        return jax.jit(lambda x: x, out_shardings=whole)(flatten(fitted, f"{MAP}/"))


class _Checkpointer:
    """The checkpoints of a stage, by steps and by time."""

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        bundle: Bundle,
        trains: tuple[str, ...],
        frozen: Any,
        log: StageLog,
        checkpoints: CheckpointWriter,
        agreement: Agreement,
        search: CorpusSearch | None,
        goodput: Goodput,
    ):
        self._search, self._goodput = search, goodput
        self._stage, self._minutes = config.stages[log.position.number], config.saving.minutes
        self._workdir, self._bundle, self._trains, self._frozen = workdir, bundle, trains, frozen
        self._log, self._checkpoints, self._agreement = log, checkpoints, agreement
        self._saved, self._saved_step = time.monotonic(), log.position.step

    @property
    def late(self) -> bool:
        """Whether the newest checkpoint was saved long ago."""
        return time.monotonic() - self._saved > 60 * self._minutes

    def due(self, step: int, late: bool) -> bool:
        """Return whether to save after so many steps, which may be saved already."""
        every = self._stage.saving.every
        return step != self._saved_step and (late or (every is not None and step % every == 0))

    def save(self, state: TrainState, wait: bool = False) -> None:
        """Save the state; ``wait`` until the disk holds it."""
        self._log.read()
        with self._goodput.measure("saving"):
            self._save(state, wait)
        self._goodput.saved(self._name)
        self._saved, self._saved_step = time.monotonic(), self._log.position.step
        self._agreement.forget()

    @property
    def _name(self) -> str:
        """The name of the checkpoint of the position."""
        position = self._log.position
        return checkpoint_directory(self._workdir, position.number, self._stage.name, position.step).name

    def _save(self, state: TrainState, wait: bool) -> None:
        position = self._log.saved()
        arrays, metadata, write_extra = self._with(state).contents(self._stage.name)
        metadata |= {"training": dataclasses.asdict(position), "finished": position.finished}
        metadata |= {"evaluation": position.last if position.evaluated == position.step else {}}
        arrays |= {"optimizer": named_optimizer(state.optimizer)}
        if LOG_TEMPERATURE in state.trained:
            arrays |= unflatten({LOG_TEMPERATURE: state.trained[LOG_TEMPERATURE]})
        # Between two draws; the next step draws anew otherwise, or there is none.
        if self._search is not None and not position.finished and not self._search.due(position.step):
            arrays |= self._search.arrays()
        place = (position.number, self._stage.name, position.step)
        self._checkpoints.save(*place, arrays, metadata, write_extra, wait=wait)

    def stopped(self, state: TrainState, steps: int) -> Stopped:
        """Save unless that is done, wait until the disk holds it, and return the exception for a run that stops."""
        step = self._log.position.step
        if step != self._saved_step:
            self.save(state, wait=True)
        with self._goodput.measure("saving"):
            self._checkpoints.wait()
        self._goodput.saved(self._name)
        self._goodput.write()
        say(self._goodput.line())
        return Stopped(
            f"stopped at {self._stage.name} step {step} of {steps}, saved in {self._workdir}; the same command goes on "
            "from there"
        )

    def finish(self, state: TrainState, summary: dict[str, Any]) -> Bundle:
        """Save the finished stage and return its model, with the summary in its history."""
        self._bundle = dataclasses.replace(self._bundle, history=(*self._bundle.history, summary))
        self.save(state)
        return self._with(state)

    def _with(self, state: TrainState) -> Bundle:
        """Return the model with the trained parameters."""
        bundle, trained = self._bundle, state.trained
        changed = set(bundle.base_overrides) | {name for name in self._trains if name.split("/")[0] == "base"}
        return dataclasses.replace(
            bundle,
            params=merge({path: leaf for path, leaf in trained.items() if path != LOG_TEMPERATURE}, self._frozen),
            base_overrides=("base",) if "base" in changed else tuple(sorted(changed)),
            trained=tuple(sorted(set(bundle.trained) | set(self._trains))),
        )


def _warn_of_scaffold(config: RunConfig, number: int, steps: int) -> None:
    """Warn where a stage ends with a scaffold, which is absent at inference."""
    stage = config.stages[number]
    left = scaffold_at(stage.objective, steps, steps)
    if left < 1e-6 or not is_main():
        return
    following = (stage for stage in config.stages[number + 1 :] if stage.objective.has_scaffold)
    later = next((stage for stage in following if stage.objective.scaffold_end == 0), None)
    if later:
        do = f"{later.name} is to take it away: use no checkpoint from before its end"
    else:
        field = "objective.scaffold_end=0"
        do = f"set config.{stage.name}.{field}, or train a stage from here that has {field}"
    warn_line(
        f"{stage.name} ended with scaffold {left:g}: the generator reads memories that lean on it, and in use there "
        f"is none; {do}"
    )
