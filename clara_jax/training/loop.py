"""The training loop: the stages of a run in order; a run that was killed at any moment is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clara_jax import distributed
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.run import CheckpointWriter
from clara_jax.data import synthetic
from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import read_object
from clara_jax.formats.jsonl import Rejects
from clara_jax.input_pipeline.records import Record
from clara_jax.method.parameters import split
from clara_jax.model.sharding import check_batch, make_mesh
from clara_jax.training.config import RunConfig
from clara_jax.training.config_parsing import to_json
from clara_jax.training.curves import draw
from clara_jax.training.goodput import GOODPUT, Goodput
from clara_jax.training.metrics import MetricWriter, NoMetricWriter, read_metrics
from clara_jax.training.profile import check_profiler
from clara_jax.training.resume import CONFIG, RUN, Position, Start, find_start, is_finished, resolved_precision
from clara_jax.training.run_directory import LOCK, environment, lock, write_json
from clara_jax.training.stage_data import HELD_OUT, SYNTHETIC, TRAIN, StageData, StageRecords
from clara_jax.training.stage_run import train_stage
from clara_jax.training.stopping import StopSignal

METRICS, REJECTED, WORLD = "metrics.jsonl", "rejected.jsonl", "world"
HELD_OUT_WORLD = f"{SYNTHETIC}eval"
FIELDS = {"train": TRAIN, "eval": HELD_OUT}  # that name the records of a split


class RunResult(NamedTuple):
    """The result of a finished run: the model, and the held-out records of its last stage."""

    bundle: Bundle
    held_out: Sequence[Record]


def run(config: RunConfig, workdir: Path, stop: StopSignal) -> RunResult | None:
    """Train every stage of a configuration, or those that are left.

    The run directory gets ``config.json`` (resolved), ``run.json`` (versions, commit, command, one entry per start; the
    fingerprint at the end), ``metrics.jsonl``, ``goodput.json``, ``tensorboard/``, ``checkpoints/`` and ``curves.png``.
    Lines of the data that were left out are in ``rejected.jsonl``; where it is evaluated on the synthetic corpus,
    documents and questions that no training record knows are in ``world/``.

    Args:
      config: the resolved configuration.
      workdir: the run directory.
      stop: asked between steps.

    Returns:
      None where nothing was left to do.

    Raises:
      ClaraError: bad configuration, data or base; the directory's run has another configuration, or another process
        trains in it; a loss that is not finite; a disk that is full.
      Stopped: ``stop`` was set, and everything is saved.
    """
    began = time.monotonic()
    if not distributed.is_main():
        config = dataclasses.replace(config, reporting=dataclasses.replace(config.reporting, progress=False))
    # What the configuration leaves open is recorded as it was decided.
    precision = distributed.on_main(resolved_precision, config, workdir)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
    if distributed.on_main(is_finished, config, workdir):  # the resume ladder's first rung, see `find_start`
        return None
    mesh = make_mesh(**config.mesh_sizes)
    if config.reporting.profile:
        check_profiler()
    for stage in config.stages:
        where = f"config.{stage.name}.optimizer.batch_size / accumulate"
        check_batch(stage.optimizer.microbatch, mesh, where)
    with contextlib.ExitStack() as stack:
        distributed.on_main(stack.enter_context, lock(workdir))
        check_shared(workdir)
        # Everything that can be wrong is looked at before the first step: a bad line in the last stage's file, or a
        # subtree that does not exist, should not cost the stages before it.
        try:
            records = _read_records(config, workdir)
            log = _read_log(workdir)
            log["data"] = check_same_data(config, log.get("data"), records)
            start = find_start(config, workdir, mesh, [part for read in records for part in read.train])
            for stage in config.stages:
                split(start.bundle.params, stage.subtrees)
                split(start.bundle.params, stage.reset, "reset")
            left = range(start.position.number, len(config.stages))
            bundles = {i: bundle_of(config, i, start) for i in left}
            data = {i: StageData.encode(config, config.stages[i], bundles[i], records[i]) for i in left}
            distributed.on_main(_write_config, config, workdir)
        finally:
            _forget_empty(workdir)
        log["starts"].append(environment())
        distributed.on_main(write_json, workdir / RUN, log)
        place = None if start.newest is None else start.newest.name
        goodput = Goodput(workdir / GOODPUT, place, distributed.is_main(), began=began)
        stack.enter_context(jax.set_mesh(mesh))
        metrics = stack.enter_context(_open_metrics(config, workdir, start.position.metrics_bytes))
        checkpoints = stack.enter_context(CheckpointWriter(workdir, config.saving.keep, config.saving.best or None))
        for number in left:
            start = start._replace(bundle=bundle_of(config, number, start))
            bundle = train_stage(config, workdir, start, data[number], metrics, checkpoints, stop, goodput)
            start = Start(bundle, Position(number + 1, metrics_bytes=metrics.sync()))
        with goodput.measure("saving"):
            checkpoints.wait()
        finished = {"fingerprint": start.bundle.fingerprint()}
        distributed.on_main(_conclude, config, workdir, log | {"finished": finished})
        goodput.write()
        return RunResult(start.bundle, records[-1].held_out)


def bundle_of(config: RunConfig, number: int, start: Start) -> Bundle:
    """Return the model with the sizes of a stage: lengths and rates may change between the stages of a run."""
    clara = config.clara_of(config.stages[number])
    return start.bundle.with_memories(clara.doc_max_length, clara.compress_rate, clara.memory_count)


def check_shared(workdir: Path) -> None:
    """Check that all processes share the run directory.

    Raises:
      ClaraError: this process does not see the run directory of the main one.
    """
    if not (workdir / LOCK).exists():
        raise ClaraError(
            f"{workdir}: process {jax.process_index()} does not see the run directory that process 0 has made; name "
            "one on a disk that all processes share"
        )


def check_same_data(
    config: RunConfig, began: Mapping[str, Any] | None, records: Sequence[StageRecords]
) -> dict[str, dict[str, str]]:
    """Return the fingerprints of every stage's records, by stage and split.

    Args:
      config: the run's.
      began: those that the run began with; None for a new one.
      records: of each stage.

    Raises:
      ClaraError: the run began with others.
    """
    found = {stage.name: read.fingerprints for stage, read in zip(config.stages, records, strict=True)}
    for name, fingerprints in found.items():
        for field, value in fingerprints.items():
            if began is not None and began[name][field] != value:
                raise ClaraError(
                    f"config.{name}.{FIELDS[field]}: the records have changed since the run began; give it the "
                    "records it began with, or name another --workdir"
                )
    return found


def check_progress(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that every stage has made progress.

    Raises:
      ClaraError: a stage whose training loss (last quarter of its steps against the first) or held-out loss did not
        fall.
    """
    for stage in dict.fromkeys(row["stage"] for row in rows):
        stage_rows = [row for row in rows if row["stage"] == stage]
        losses = [row["loss"] for row in stage_rows if "loss" in row]
        quarter = max(1, len(losses) // 4)
        pairs = [("training", (np.mean(losses[:quarter]), np.mean(losses[-quarter:])))]
        pairs += [("held-out", row["held_out_loss"]) for row in stage_rows if "held_out_loss" in row]
        for name, (before, after) in pairs:
            if not after < before:
                raise ClaraError(f"{stage}: the {name} loss did not fall, {before:.4f} -> {after:.4f}")


def _read_records(config: RunConfig, workdir: Path) -> list[StageRecords]:
    if config.on_error == "stop":
        return [StageRecords.read(config, stage) for stage in config.stages]
    if not distributed.is_main():
        with Rejects(os.devnull) as rejects:
            return [StageRecords.read(config, stage, rejects) for stage in config.stages]
    path = workdir / REJECTED
    rejects = Rejects(path)
    try:
        with rejects:
            records = [StageRecords.read(config, stage, rejects) for stage in config.stages]
    finally:
        if not rejects.count:
            path.unlink()
    if rejects.count:
        print(f"lines of data files that are no records, left out: {rejects.count}, see {path}", file=sys.stderr)
    return records


def _read_log(workdir: Path) -> dict[str, Any]:
    """Return the content of ``run.json``, or that of a new one."""
    path = workdir / RUN
    return read_object(path, "delete it and give the command again") if path.exists() else {"starts": []}


def _write_config(config: RunConfig, workdir: Path) -> None:
    if not (workdir / CONFIG).exists():
        write_json(workdir / CONFIG, to_json(config))


def _open_metrics(config: RunConfig, workdir: Path, keep_bytes: int) -> MetricWriter | NoMetricWriter:
    if not distributed.is_main():
        return NoMetricWriter()
    events = workdir / "tensorboard" if config.reporting.tensorboard else None
    return MetricWriter(workdir / METRICS, events, keep_bytes)


def _conclude(config: RunConfig, workdir: Path, log: Mapping[str, Any]) -> None:
    """Draw the curves, write the documents of an invented world that can be asked, note that nothing is left to do."""
    rows = read_metrics(workdir / METRICS)
    draw(rows, workdir / "curves.png")
    if config.reporting.require_progress:
        check_progress(rows)
    if HELD_OUT_WORLD in config.stages[-1].evaluation.data:
        synthetic.write_world(config.synthetic, workdir / WORLD)
    write_json(workdir / RUN, log)


def _forget_empty(workdir: Path) -> None:
    """Remove the directory of a run that could not begin."""
    if distributed.is_main() and not any(path.name != LOCK for path in workdir.iterdir()):
        shutil.rmtree(workdir)
