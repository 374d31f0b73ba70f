"""A stage's place in its run while it trains, and its lines of metrics."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from clara_jax.distributed import is_main, say
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.method.stages import Terms
from clara_jax.model.quantization import NONE
from clara_jax.training.config import RunConfig
from clara_jax.training.metrics import MetricWriter, NoMetricWriter, device_memory
from clara_jax.training.resume import Position
from clara_jax.training.run_directory import write_json
from clara_jax.training.stage_evaluator import describe


class StageLog:
    """The position of a stage, and what is written about its steps.

    A step is read and logged while the next one is under way, so that the device never waits for the host.

    Args:
      config: the run's.
      workdir: the run directory.
      position: where the stage begins, or goes on.
      metrics: takes the lines.
      rejected: lines of the stage's files that are no records.
      loader: of the batches, to name the records of one.

    Attributes:
      position: now.
      loss: of the newest step that is read; None before.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        position: Position,
        metrics: MetricWriter | NoMetricWriter,
        rejected: int,
        loader: BatchLoader,
    ):
        self.position = position
        self.loss: float | None = None
        self._config, self._stage = config, config.stages[position.number]
        self._workdir, self._metrics, self._rejected, self._loader = workdir, metrics, rejected, loader
        self._pending: tuple[int, Terms, dict[str, Any]] | None = None  # the step under way: number, metrics, facts
        self._started = time.monotonic() - position.seconds

    @property
    def seconds(self) -> float:
        """Time spent in the stage."""
        return time.monotonic() - self._started

    def step(self, values: Terms, facts: dict[str, Any]) -> None:
        """Take the step that is under way: its metrics, on the devices, and what the host knows of it."""
        self._pending = (self.position.step, values, facts)
        self.position = dataclasses.replace(self.position, step=self.position.step + 1)

    def read(self) -> None:
        """Read and log the step that is under way.

        Raises:
          ClaraError: it is not finite, and the run is to stop then.
        """
        if self._pending is None:
            return
        (step, values, facts), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        finite, self.loss = values.pop("finite"), values["loss"]
        if not finite:
            self._not_finite(step, values)
        if self._config.non_finite == "skip":
            facts = facts | {"skipped": self.position.skipped}
        if self._rejected:
            facts = facts | {"rejected": self._rejected}
        if step % self._stage.saving.log_every == 0:
            self._metrics.write({"stage": self._stage.name, "step": step, **values, **facts})

    def evaluated(self, values: Mapping[str, float]) -> None:
        """Write the held-out values after the steps that are done, and note them in the position."""
        step, name = self.position.step, self._stage.name
        row = {f"eval_{key}": value for key, value in values.items()} | device_memory()
        if values:
            self._metrics.write({"stage": name, "step": step, **row})
            say(f"{name} step {step}: held-out {describe(values)}")
        values = {key: value for key, value in values.items() if math.isfinite(value)}  # JSON has no others
        first = values if step == 0 else self.position.first
        self.position = dataclasses.replace(self.position, evaluated=step, first=first, last=values)

    def saved(self) -> Position:
        """Return the position for a checkpoint, once the metrics before it are on disk."""
        seconds = round(self.seconds, 3)
        self.position = dataclasses.replace(self.position, seconds=seconds, metrics_bytes=self._metrics.sync())
        return self.position

    def finish(self, compilations: Mapping[str, int]) -> dict[str, Any]:
        """Write the stage's summary and return it; its last step is read, and nothing of it is left to do."""
        first, last = self.position.first, self.position.last
        summary = {
            "stage": self._stage.name,
            "steps": self.position.step,
            "seconds": round(self.seconds, 1),
            "top_k": self._stage.topk.k,
        }
        if self._config.model.quantization != NONE:
            summary["quantization"] = self._config.model.quantization
        summary |= {f"held_out_{name}": [first[name], last[name]] for name in last if name in first}
        self._metrics.write({**summary, **compilations, **device_memory(), "finished": True})
        self.position = dataclasses.replace(self.position, finished=True)
        return summary

    def _not_finite(self, step: int, values: Mapping[str, float]) -> None:
        """Skip a step that is not finite, or end the run, by ``non_finite``; the step changed nothing."""
        name = self._stage.name
        what = f"{name} step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        if self._config.non_finite == "skip":
            self.position = dataclasses.replace(self.position, skipped=self.position.skipped + 1)
            say(f"{what}; the batch is skipped, {self.position.skipped} so far", error=True)
            return
        path = self._workdir / f"non_finite-{name}-{step:08d}.json"
        if is_main():
            records = [example.where for example in self._loader.examples(step)]
            report = {"stage": name, "step": step, "records": records}
            write_json(path, report | {key: str(value) for key, value in values.items()})
        raise ClaraError(
            f"{what}; lower config.{name}.optimizer.learning_rate, set config.model.precision=float32, or skip such "
            f"batches with config.non_finite=skip; the batch's records are in {path}"
        )
