"""The held-out values of a stage: of each kind of its records, and at each of its rates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.input_pipeline.rates import with_fewer
from clara_jax.input_pipeline.records import TEXT_STAGES, Record
from clara_jax.method.generator import TOKENS
from clara_jax.method.parameters import merge
from clara_jax.method.topk import DEGENERATE
from clara_jax.metrics.controls import HELD_OUT_CONTROLS
from clara_jax.model.sharding import put_whole
from clara_jax.training.config import ReportingConfig
from clara_jax.training.evaluate import Evaluation
from clara_jax.training.metrics import Progress
from clara_jax.training.schedules import scaffold_at
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stage_data import StageBatches, StageData


class StageEvaluator:
    """The evaluations of a stage's held-out records.

    Records of each kind are measured apart, see `_kind`; so is each rate.

    Args:
      stage: the stage's configuration.
      bundle: the model at the stage's start.
      data: the stage's.
      batches: the stage's, with the rates that they have, and its stored memories.
      steps: the stage's.
      reporting: how far an evaluation has come is shown as it says.
    """

    def __init__(
        self,
        stage: StageConfig,
        bundle: Bundle,
        data: StageData,
        batches: StageBatches,
        steps: int,
        reporting: ReportingConfig,
    ):
        self._reporting = reporting
        self._stage, self._mesh, self._steps, self._search = stage, bundle.mesh, steps, batches.search
        asked = any(record.kind == "question" for record in data.held_out_records)
        kinds = [_kind(record, asked) for record in data.held_out_records]
        found = sorted(set(kinds)) or [""]
        self._evaluations = {}  # by the prefix of the names of their values
        for kind, at_rate in itertools.product(found, batches.at_rates):
            chosen = [i for i, other in enumerate(kinds) if other == kind]
            rate = "" if at_rate is bundle else f"rate_{at_rate.model.clara.compress_rate}_"
            counts = bundle.tokenizer.memory_tokens, at_rate.tokenizer.memory_tokens
            examples = [data.held_out[i] for i in chosen]
            self._evaluations[rate + (f"{kind}_" if kind and len(found) > 1 else "")] = Evaluation(
                at_rate.model,
                stage.stage,
                dataclasses.replace(stage.hyperparameters, ce_over=TOKENS),  # comparable between runs
                at_rate.tokenizer,
                bundle.mesh,
                examples if at_rate is bundle else [with_fewer(example, *counts) for example in examples],
                [data.held_out_records[i] for i in chosen],
                data.encoding,
                stage.optimizer.microbatch,
                loss_batches=stage.evaluation.batches,
                answers=stage.evaluation.answers,
                max_new_tokens=stage.evaluation.answer_tokens,
                end_ids=bundle.end_ids,
                controls=stage.evaluation.controls,
                gradients=stage.evaluation.gradients,
                memories=batches.memories,
            )

    def due(self, step: int) -> bool:
        """Return whether the model is measured after so many steps: at the start, the end, and as often as is asked."""
        every = self._stage.evaluation.every
        return step in (0, self._steps) or (every is not None and step % every == 0)

    def __call__(self, step: int, trained: Any, frozen: Any, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return the held-out values after so many steps; None as soon as ``stop`` says so."""
        values, numbers = {}, {}
        if self._stage.objective.scaffold_end is not None:
            scaffold = scaffold_at(self._stage.objective, self._steps, step)
            numbers["scaffold"] = put_whole(np.float32(scaffold), self._mesh)
        total = sum(evaluation.batches for evaluation in self._evaluations.values())
        with Progress(
            total,
            f"{self._stage.name} evaluation",
            enabled=self._reporting.progress,
            seconds=self._reporting.progress_seconds,
            brief=True,
        ) as progress:
            for prefix, evaluation in self._evaluations.items():
                found = evaluation(trained, frozen, stop, numbers, progress.update)
                if found is None:
                    return None
                values |= {f"{prefix}{name}": value for name, value in found.items()}
        if self._search is not None:
            values |= self._search.recall(merge(trained, frozen))
        return values

    @property
    def compilations(self) -> int:
        """Programs that were compiled for it."""
        return sum(evaluation.compilations for evaluation in self._evaluations.values())


def _kind(record: Record, asked: bool) -> str:
    """Return what begins the names of a record's values: the kind of a text, "scp" of its records beside questions."""
    if record.kind in TEXT_STAGES:
        return record.kind
    return "scp" if asked and record.kind != "question" else ""


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
