"""Run all systems on all suites; work that was stopped is continued from its files.

    DIR/plan.json        the systems, and the settings
    DIR/suites.json      the suites, whole
    DIR/outcomes/...     the predictions, a file for each suite and system, see `PredictionFile`
    DIR/memories/...     the documents, compressed, for each compressor
    DIR/inside/...       the analyses of each model's internals

With several processes all compute the same, and the main one writes; the directory must be on a disk that all share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clara_jax import distributed
from clara_jax.analysis.inside_report import analyze
from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction, PredictionFile
from clara_jax.evaluation.systems import MemoryModel, Settings, System
from clara_jax.files import file_errors, replaced_when_whole
from clara_jax.formats.json_file import read_object
from clara_jax.locks import locked
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import ON_MEMORIES, Condition, cases_of
from clara_jax.strict_json import parse

PLAN, SUITES, PREDICTIONS, INSIDE, LOCK = "plan.json", "suites.json", "outcomes", "inside", ".lock"
RANK = "rank"  # systems that only rank are called rank/<name>
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SystemSpec:
    """A system to evaluate, before it is opened.

    Attributes:
      name: of the model; of a ranker "rank/<name>", which is the system's whole name.
      about: its description in the plan: whatever must be the same for predictions to be comparable.
      conditions: those under which it is asked.
      open: opens it, which may take long and much memory; called when it is needed, and the result is dropped after.
      per_condition: likewise to ``about``, settings of single conditions, by name.
    """

    name: str
    about: Mapping[str, Any]
    conditions: tuple[Condition, ...]
    open: Callable[[], System]
    per_condition: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def remembers(self) -> bool:
        """Return whether it is a model that answers from memories."""
        return any(condition.name in ON_MEMORIES for condition in self.conditions)

    def system_name(self, condition: Condition) -> str:
        """Return the name of its results under a condition."""
        return self.name if self.name.startswith(f"{RANK}/") else f"{self.name}/{condition.name}"


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make the directory, and lock other processes out of it.

    Raises:
      ClaraError: another one is in it; it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{directory}: cannot be made: {error.strerror}; name another --report") from error
    busy = f"{directory}: another process writes this report; wait for it, or name another --report"
    with contextlib.ExitStack() as stack:
        with file_errors(f"{directory}: cannot be written", "; name another --report"):
            stack.enter_context(locked(directory / LOCK, busy))
        yield


def prediction_path(directory: Path, suite: str, system: str) -> Path:
    """Return the path of a system's predictions on a suite."""
    return directory / PREDICTIONS / suite.replace("/", "__") / f"{system.replace('/', '__')}.jsonl"


def write_plan(directory: Path, specs: Sequence[SystemSpec], suites: Sequence[Suite], settings: Settings) -> None:
    """Write the plan and the suites, or check that they agree with those of an earlier run.

    Models, conditions and suites may be added.

    Raises:
      ClaraError: the directory holds results of other settings, models or cases, which would be mixed up.
    """
    plan = {
        "format": FORMAT,
        "settings": dataclasses.asdict(settings),
        "models": {spec.name: dict(spec.about) for spec in specs},
        "systems": [spec.system_name(condition) for spec in specs for condition in spec.conditions],
        "specs": {f"{spec.name}/{name}": dict(value) for spec in specs for name, value in spec.per_condition.items()},
    }
    fields = {suite.name: suite.fields() for suite in suites}
    path = directory / PLAN
    if path.exists():
        before = read_object(path, "name another --report")
        if before.get("format") != FORMAT:
            raise ClaraError(f"{path}: is of another format; name another --report")
        _same(path, "settings", before["settings"], plan["settings"], whole=True)
        _same(path, "models", before["models"], plan["models"])
        known_specs = before.get("specs", {})  # reports of earlier versions have none
        _same(path, "specs", known_specs, plan["specs"])
        known = {suite["name"]: suite for suite in parse((directory / SUITES).read_text(encoding="utf-8"))}
        _same(directory / SUITES, "suites", known, json.loads(json.dumps(fields)))
        plan["models"] = before["models"] | plan["models"]
        plan["specs"] = known_specs | plan["specs"]
        plan["systems"] = list(dict.fromkeys((*before["systems"], *plan["systems"])))
        fields = known | fields
    # The suites first: where there is a plan, its suites are there.
    for name, value in ((SUITES, list(fields.values())), (PLAN, plan)):
        with replaced_when_whole(directory / name) as temporary:
            temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _same(path: Path, what: str, before: Mapping, now: Mapping, whole: bool = False) -> None:
    for name, value in now.items():
        if (name in before or whole) and before.get(name) != value:
            shown = f" ({before.get(name)!r} then, {value!r} now)" if whole else ""
            raise ClaraError(
                f"{path}: {what}: {name} is not what it was{shown}; results would be mixed up: name another --report"
            )


def read_suites(directory: Path) -> list[Suite]:
    """Read the suites of a directory, as they were asked.

    Raises:
      ClaraError: there are none.
    """
    path = directory / SUITES
    if not path.exists():
        raise ClaraError(
            f"{path}: does not exist; name a directory of python -m clara_jax.evaluate (reports of evaluate corpus "
            "cannot be compared)"
        )
    try:
        suites = parse(path.read_text(encoding="utf-8"))
        return [_suite(fields) for fields in suites]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClaraError(
            f"{path}: cannot be read ({error}); name a directory of python -m clara_jax.evaluate"
        ) from None


def read_predictions(directory: Path, suite: str, systems: Sequence[str]) -> dict[str, list[Prediction]]:
    """Read the predictions of systems on a suite, by system; those that were not asked are left out.

    Raises:
      ClaraError: a file is damaged.
    """
    paths = {system: prediction_path(directory, suite, system) for system in systems}
    return {name: list(PredictionFile(path).predictions.values()) for name, path in paths.items() if path.exists()}


def _suite(fields: Mapping[str, Any]) -> Suite:
    def case(fields: Mapping[str, Any]) -> Case:
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
        return Case(**values)

    return Suite(fields["name"], fields["ranked"], tuple(map(case, fields["cases"])))


def run(
    specs: Sequence[SystemSpec],
    suites: Sequence[Suite],
    settings: Settings,
    directory: Path,
    batch: int,
    timed: int = 0,
    progress: bool = True,
) -> None:
    """Run every system on every case that has no prediction yet.

    Args:
      specs: the systems, opened one at a time.
      suites: the cases.
      settings: those of all systems.
      directory: where predictions are written.
      batch: cases between two writes; the most that a kill loses.
      timed: cases of the first ranked and the first other suite that are also asked alone and timed.
      progress: whether a bar is shown.
    """
    clocked = {next((suite.name for suite in suites if suite.ranked is ranked), None) for ranked in (True, False)}
    work = list(_work(specs, suites, settings, directory))
    total = sum(len(cases_of(condition, suite, settings.k)) for _, suite, condition in _systems(specs, suites))
    left = sum(len(todo) for *_, todo in work)
    show = progress and distributed.is_main()
    with tqdm(total=total, initial=total - left, unit=" cases", disable=not show, smoothing=0.02) as bar:
        for spec in specs:
            parts = [part for part in work if part[0] is spec]
            if not parts:
                continue
            bar.set_description(f"{spec.name}: opening")
            system = spec.open()
            for _, suite, condition, todo in parts:
                bar.set_description(f"{spec.system_name(condition)} on {suite.name}")
                first = {case.id for case in suite.cases[:timed]} if suite.name in clocked else set()
                path = prediction_path(directory, suite.name, spec.system_name(condition))
                file = PredictionFile(path) if distributed.is_main() else None
                for start in range(0, len(todo), batch):
                    cases = todo[start : start + batch]
                    asked = [[case for case in cases if (case.id in first) is alone] for alone in (True, False)]
                    found = [
                        prediction
                        for part, alone in zip(asked, (True, False), strict=True)
                        if part
                        for prediction in system.predict(condition, suite, part, alone)
                    ]
                    if file is not None:
                        file.append(found)
                    bar.update(len(cases))
            del system


def look_inside(
    specs: Sequence[SystemSpec], suites: Sequence[Suite], settings: Settings, directory: Path, limit: int
) -> None:
    """Analyze the internals of each model that answers from memories, where that was not done yet for these suites.

    Args:
      specs: the systems; those that do not answer from memories are skipped.
      suites: where cases and documents are taken from.
      settings: k and the seed.
      directory: of the report.
      limit: the number of cases that are analyzed.
    """
    asked = {"limit": limit, "suites": {suite.name: suite.digest() for suite in suites}}
    for spec in specs:
        path = directory / INSIDE / f"{spec.name}.json"
        if spec.remembers and distributed.on_main(_looked_at, str(path)) != asked:
            model = spec.open()
            assert isinstance(model, MemoryModel)
            sections = analyze(model.clara, suites, limit, settings.seed, settings.k, model.read_memories)
            distributed.on_main(_write_analysis, path, {"asked": asked, "sections": sections})


def _systems(specs: Sequence[SystemSpec], suites: Sequence[Suite]) -> Iterator[tuple[SystemSpec, Suite, Condition]]:
    return ((spec, suite, condition) for spec in specs for suite in suites for condition in spec.conditions)


def _work(
    specs: Sequence[SystemSpec], suites: Sequence[Suite], settings: Settings, directory: Path
) -> Iterator[tuple[SystemSpec, Suite, Condition, list[Case]]]:
    """Yield the cases without predictions, by system, suite and condition."""
    for spec, suite, condition in _systems(specs, suites):
        path = prediction_path(directory, suite.name, spec.system_name(condition))
        # The main process looks: the others would see files that it is writing.
        done = set(distributed.on_main(_done, str(path)))
        todo = [case for case in cases_of(condition, suite, settings.k) if case.id not in done]
        if todo:
            yield spec, suite, condition, todo


def _done(path: str) -> list[str]:
    return list(PredictionFile(path).predictions) if Path(path).exists() else []


def _looked_at(path: str) -> Any:
    return read_object(Path(path), "remove it")["asked"] if Path(path).exists() else None


def _write_analysis(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
