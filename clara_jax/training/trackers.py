"""A run's metrics in the experiment tracker that a team looks at: Weights & Biases, MLflow or Trackio.

What is sent is what stands in the run directory: the rows of ``metrics.jsonl``, the fields of ``config.json`` as
parameters, and versions, commit and command of ``run.json``. A row is sent once. ``trackers.json`` in the run directory
says how far each tracker is, so that a later call sends what is new, and a training run that repeats steps after a
crash does not send them again.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from clara_jax.errors import ClaraError
from clara_jax.files import file_errors
from clara_jax.formats.json_file import read_object
from clara_jax.locks import locked
from clara_jax.redaction import shown
from clara_jax.training.goodput import GOODPUT, read_totals
from clara_jax.training.metrics import parse_row
from clara_jax.training.resume import CONFIG, RUN, flat_fields
from clara_jax.training.run_directory import write_json

METRICS, STATE = "metrics.jsonl", "trackers.json"
BATCH = 500  # rows that are sent together, between two notes of how far it is
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "TRACKIO_WRITE_TOKEN", "HF_TOKEN")
_DAMAGED = "delete it, and all rows are sent again"


class TrackedRow(NamedTuple):
    """A row for a tracker.

    Attributes:
      step: of the whole run: what the stages before had, and the stage's.
      stage: its name.
      stage_step: the stage's step.
      values: by name, "<stage>/<name>".
    """

    step: int
    stage: str
    stage_step: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """A run in an experiment tracker, open for more rows."""

    def log(self, rows: Sequence[TrackedRow]) -> None:
        """Send rows; return when the tracker has them."""
        ...

    def close(self, finished: bool) -> None:
        """Close it; ``finished`` is whether the run in the run directory is."""
        ...


class WandB:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run directory, for ``wandb sync``."""

    def __init__(self, workdir: Path, project: str, name: str, id: str, parameters: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            config=dict(parameters),
            dir=str(workdir),
            settings=wandb.Settings(silent=True, x_disable_stats=True, disable_git=True, save_code=False),
        )
        self._stages: set[str] = set()

    def log(self, rows: Sequence[TrackedRow]) -> None:
        """Send rows; the charts of a stage have the stage's step, or the whole run's, which W&B counts by itself."""
        for row in rows:
            at = f"{row.stage}/step"
            if row.stage not in self._stages:
                self._run.define_metric(at)
                self._run.define_metric(f"{row.stage}/*", step_metric=at)
                self._stages.add(row.stage)
            self._run.log({at: row.stage_step, **row.values}, step=row.step)

    def close(self, finished: bool) -> None:
        """Upload what is left, and close the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says: a server, ``sqlite:///FILE``, or MLflow's default."""

    def __init__(self, workdir: Path, project: str, name: str, id: str, parameters: Mapping[str, Any]):
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH  # pyright: ignore[reportMissingImports]

        self._client, self._metric = mlflow.MlflowClient(), Metric
        there = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if there is None else there.experiment_id
        # MLflow chooses the ids of runs; ours is a tag.
        known = self._client.search_runs([experiment], f"tags.clara_run = '{id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=name, tags={"clara_run": id}).info.run_id
        values = [(field, str(value)[:MAX_PARAM_VAL_LENGTH]) for field, value in parameters.items()]
        for start in range(0, len(values), 100):  # of one request
            self._client.log_batch(self._id, params=[Param(*pair) for pair in values[start : start + 100]])
        self._client.log_batch(self._id, tags=[RunTag("source", str(workdir.resolve()))])

    def log(self, rows: Sequence[TrackedRow]) -> None:
        """Send rows, each value with the step of the whole run."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, row.step) for row in rows for name, value in row.values.items()]
        for start in range(0, len(metrics), 1000):  # of one request
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def close(self, finished: bool) -> None:
        """Note that the run has ended, where it has."""
        if finished:
            self._client.set_terminated(self._id)


class Trackio:
    """A run of Trackio: local by default (TRACKIO_DIR), elsewhere by TRACKIO_SERVER_URL or TRACKIO_SPACE_ID."""

    def __init__(self, workdir: Path, project: str, name: str, id: str, parameters: Mapping[str, Any]):
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project, name=name, config=dict(parameters), resume="allow", auto_log_gpu=False, auto_log_cpu=False,
            embed=False,
        )  # fmt: skip

    def log(self, rows: Sequence[TrackedRow]) -> None:
        """Send rows, each with the step of the whole run."""
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def close(self, finished: bool) -> None:
        """Wait until all is stored."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, str, str, str, Mapping[str, Any]], Tracker]] = {
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


class MetricExport:
    """The rows of a run that a tracker does not have yet.

    Attributes:
      sent: rows that were sent by this process.
    """

    def __init__(self, workdir: Path, to: str, project: str, name: str | None = None):
        """Open a run directory and the tracker's run.

        Args:
          workdir: the run directory.
          to: one of `TRACKERS`.
          project: in the tracker (an experiment, for MLflow).
          name: of the run there; default the directory's.

        Raises:
          ClaraError: no run directory, or one whose files cannot be read; another process sends it to the same
            tracker; the tracker refuses.
        """
        if not (workdir / CONFIG).exists():
            raise ClaraError(f"{workdir}: holds no {CONFIG}; name the directory of a training run")
        self.sent = 0
        self._workdir, self._path, self._state_path = workdir, workdir / METRICS, workdir / STATE
        self._name = name or workdir.resolve().name
        self._key = f"{to}:{project}/{self._name}"
        self._lock = locked(
            workdir / f".{to}.lock", lambda: f"{workdir}: another process sends this run to {to}; wait for it"
        )
        with file_errors(f"{workdir}: how far {to} is cannot be noted there"):
            self._lock.__enter__()
        try:
            self._state = self._read_state()
            here = self._state.setdefault(self._key, {"id": uuid.uuid4().hex[:16], "stages": {}})
            self._stages: dict[str, dict[str, Any]] = here["stages"]
            write_json(self._state_path, self._state)  # the id first: a process that is killed here makes no second run
            self._tracker = self._asked(TRACKERS[to], workdir, project, self._name, here["id"], self._parameters())
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self._offset = 0

    @property
    def finished(self) -> bool:
        """Whether the training run is finished."""
        path = self._workdir / RUN
        return path.exists() and "finished" in read_object(path, "see whether the run goes on")

    def update(self) -> int:
        """Send the rows that are new, and return their number.

        Raises:
          ClaraError: a line that is no row of metrics; the tracker refuses.
        """
        count = 0
        batch: list[TrackedRow] = []
        for row in self._rows():
            batch += self._new(row)
            if len(batch) >= BATCH:
                count += self._send(batch)
                batch = []
        if self.finished:
            batch += self._goodput()
        return count + self._send(batch)

    def close(self) -> None:
        """Close the tracker's run."""
        try:
            self._asked(self._tracker.close, self.finished)
        finally:
            self._lock.__exit__(None, None, None)

    def __enter__(self) -> MetricExport:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _send(self, batch: Sequence[TrackedRow]) -> int:
        if batch:
            self._asked(self._tracker.log, batch)
            write_json(self._state_path, self._state)
            self.sent += len(batch)
        return len(batch)

    def _new(self, row: Mapping[str, Any]) -> list[TrackedRow]:
        """Return the step of the whole run and the values of a row, and note it as sent; nothing of one that was."""
        if "stage" not in row or not ("step" in row or row.get("finished")):
            return []
        stage = str(row["stage"])
        if stage not in self._stages:
            before = sum(one.get("steps", 0) for one in self._stages.values())
            self._stages[stage] = {"begins": before, "trained": -1, "evaluated": -1}
        marks = self._stages[stage]
        step = row.get("steps" if row.get("finished") else "step")
        if type(step) is not int:
            raise ClaraError(f"{self._path}: a row of {shown(stage)} has no whole number of steps, but {step!r}")
        if row.get("finished"):
            if "steps" in marks:
                return []
            marks["steps"] = step
        else:
            kind = "evaluated" if any(name.startswith("eval_") for name in row) else "trained"
            if step <= marks[kind]:
                return []
            marks[kind] = step
        return [TrackedRow(marks["begins"] + step, stage, step, dict(_values(row, stage)))]

    def _goodput(self) -> list[TrackedRow]:
        """Return what the finished run's time went into, once."""
        path = self._workdir / GOODPUT
        if GOODPUT in self._stages or not path.exists():
            return []
        total = read_totals(path)
        self._stages[GOODPUT] = {}
        values = {f"goodput/{name}_seconds": value for name, value in total["seconds"].items()}
        step = sum(one.get("steps", 0) for one in self._stages.values())
        values |= {"goodput/wall_seconds": total["wall"], "goodput/goodput": total["goodput"]}
        return [TrackedRow(step, "goodput", step, values)]

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines that were written since the last call; all of them where the file was cut meanwhile."""
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, min(self._offset, size) - 1))
                if self._offset > size or (self._offset and file.read(1) != b"\n"):
                    self._offset = 0
                file.seek(self._offset)
                while (line := file.readline()).endswith(b"\n"):
                    self._offset += len(line)
                    yield parse_row(line, self._path)
        except FileNotFoundError:  # the run has not made it yet
            return
        except OSError as error:
            raise ClaraError(f"{self._path}: cannot read metrics: {error.strerror}") from error

    def _parameters(self) -> dict[str, Any]:
        """Return what the run was configured with and where it runs, by dotted names."""
        config = read_object(self._workdir / CONFIG, "name another run")
        parameters = {name: json.loads(value) for name, value in flat_fields(config)}
        parameters = {name: json.dumps(v) if isinstance(v, list | dict) else v for name, v in parameters.items()}
        path = self._workdir / RUN
        starts = read_object(path, "name another run").get("starts") if path.exists() else None
        if isinstance(starts, list) and starts and isinstance(starts[0], dict):
            about = {name: starts[0].get(name) for name in ("versions", "device", "devices", "git", "command")}
            parameters |= {f"run.{name}": json.loads(value) for name, value in flat_fields(about)}
        return parameters

    def _read_state(self) -> dict[str, Any]:
        state = read_object(self._state_path, _DAMAGED) if self._state_path.exists() else {}
        if not all(map(_is_state, state.values())):
            raise ClaraError(f"{self._state_path}: is damaged; {_DAMAGED}")
        return state

    def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a tracker's package; its errors are one line.

        Raises:
          ClaraError: for whatever the package raises, but a package that is not installed.
        """
        try:
            return call(*arguments)
        except (ClaraError, ModuleNotFoundError):
            raise
        except Exception as error:
            # One line without keys, and without the package's exception, which may show them.
            words = shown(str(error), *(os.environ.get(name, "") for name in _SECRETS))
            failed = f"{self._key}: {type(error).__name__}: {words}; what was sent is noted, give the command again"
        raise ClaraError(failed)


def _is_state(here: Any) -> bool:
    """Return whether this is what the state notes of a tracker's run: its id, and how far each stage is."""
    if not isinstance(here, dict) or not isinstance(here.get("id"), str) or not isinstance(here.get("stages"), dict):
        return False
    goodput, stages = here["stages"].get(GOODPUT, {}), [one for name, one in here["stages"].items() if name != GOODPUT]
    marks = ("begins", "trained", "evaluated")
    return goodput == {} and all(
        isinstance(one, dict) and all(type(one.get(name)) is int for name in (*marks, *({"steps"} & one.keys())))
        for one in stages
    )


def _values(row: Mapping[str, Any], stage: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row by name; of a pair, a held-out value before and after a stage, both."""
    for name, value in row.items():
        if name in ("stage", "step"):
            continue
        pair = isinstance(value, list) and len(value) == 2
        for end, number in zip(("_before", "_after"), value, strict=True) if pair else (("", value),):
            if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= sys.float_info.max:
                yield f"{stage}/{name}{end}".replace("@", "_at_"), number
