"""All systems before all suites: what is done stays done, wherever the work is stopped.

    DIR/plan.json        what takes part, and the settings
    DIR/suites.json      the suites, whole
    DIR/outcomes/...     a file for each suite and system, see `OutcomeFile`
    DIR/memories/...     the documents, compressed, for each compressor
    DIR/inside/...       what was seen inside of each model

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
from clara_jax.checkpoints.json_file import read_object
from clara_jax.errors import ClaraError
from clara_jax.evaluation.cases import Case, Suite
from clara_jax.evaluation.contestants import Contestant, Settings
from clara_jax.evaluation.outcomes import Outcome, OutcomeFile
from clara_jax.evaluation.ways import REMEMBERING, Way, cases_of
from clara_jax.files import locked, replaced_when_whole
from clara_jax.strict_json import parse

PLAN, SUITES, OUTCOMES, INSIDE, LOCK = "plan.json", "suites.json", "outcomes", "inside", ".lock"
RANK = "rank"  # systems that only rank are called rank/<name>
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """Who takes part.

    Attributes:
      name: of the model; of a ranker "rank/<name>", which is the system's whole name.
      about: what it is, for the plan: whatever must be the same for outcomes to stand beside each other.
      ways: that it is asked in.
      specs: what must be the same, too, of single ways, by name.
      open: makes it, which may take long and much memory; it is asked for when it is needed, and dropped after.
    """

    name: str
    about: Mapping[str, Any]
    ways: tuple[Way, ...]
    open: Callable[[], Contestant]
    specs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def remembers(self) -> bool:
        """Whether it is a model that answers from memories."""
        return any(way.name in REMEMBERING for way in self.ways)

    def system(self, way: Way) -> str:
        """The name of it in a way."""
        return self.name if self.name.startswith(f"{RANK}/") else f"{self.name}/{way.name}"


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Makes the directory, and keeps other processes out of it.

    Raises:
      ClaraError: another one is in it; it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{directory}: cannot be made: {error.strerror}; name another --report") from error
    busy = f"{directory}: another process writes this report; wait for it, or name another --report"
    with locked(directory / LOCK, busy):
        yield


def outcome_path(directory: Path, suite: str, system: str) -> Path:
    """Where outcomes lie."""
    return directory / OUTCOMES / suite.replace("/", "__") / f"{system.replace('/', '__')}.jsonl"


def write_plan(directory: Path, entries: Sequence[Entry], suites: Sequence[Suite], settings: Settings) -> None:
    """Notes what is to be done, or sees that it goes with what was noted before: models, ways and suites may be added.

    Raises:
      ClaraError: the directory holds results of other settings, models or cases, which would be mixed up.
    """
    plan = {
        "format": FORMAT,
        "settings": dataclasses.asdict(settings),
        "models": {entry.name: dict(entry.about) for entry in entries},
        "systems": [entry.system(way) for entry in entries for way in entry.ways],
        "specs": {f"{entry.name}/{way}": dict(spec) for entry in entries for way, spec in entry.specs.items()},
    }
    own = {suite.name: suite.fields() for suite in suites}
    path = directory / PLAN
    if path.exists():
        before = read_object(path, "name another --report")
        if before.get("format") != FORMAT:
            raise ClaraError(f"{path}: is of another format; name another --report")
        _same(path, "settings", before["settings"], plan["settings"], whole=True)
        _same(path, "models", before["models"], plan["models"])
        specs = before.get("specs", {})  # reports of before there were any have none
        _same(path, "specs", specs, plan["specs"])
        known = {suite["name"]: suite for suite in parse((directory / SUITES).read_text(encoding="utf-8"))}
        _same(directory / SUITES, "suites", known, json.loads(json.dumps(own)))
        plan["models"] = before["models"] | plan["models"]
        plan["specs"] = specs | plan["specs"]
        plan["systems"] = list(dict.fromkeys((*before["systems"], *plan["systems"])))
        own = known | own
    # The suites first: a plan that is there has them.
    for name, value in ((SUITES, list(own.values())), (PLAN, plan)):
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
    """The suites of a directory, as they were asked.

    Raises:
      ClaraError: there are none.
    """
    path = directory / SUITES
    try:
        suites = parse(path.read_text(encoding="utf-8"))
        return [_suite(fields) for fields in suites]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClaraError(
            f"{path}: cannot be read ({error}); name a directory of python -m clara_jax.evaluate"
        ) from None


def read_outcomes(directory: Path, suite: str, systems: Sequence[str]) -> dict[str, list[Outcome]]:
    """What systems made of a suite, those that have been asked.

    Raises:
      ClaraError: a file is damaged.
    """
    paths = {system: outcome_path(directory, suite, system) for system in systems}
    return {name: list(OutcomeFile(path).outcomes.values()) for name, path in paths.items() if path.exists()}


def _suite(fields: Mapping[str, Any]) -> Suite:
    def case(own: Mapping[str, Any]) -> Case:
        return Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})

    return Suite(fields["name"], fields["ranked"], tuple(case(own) for own in fields["cases"]))


def run(
    entries: Sequence[Entry],
    suites: Sequence[Suite],
    settings: Settings,
    directory: Path,
    batch: int,
    timed: int = 0,
    progress: bool = True,
) -> None:
    """Asks everybody everything that has no outcome yet.

    Args:
      batch: cases between two looks at the disk; what a kill loses at most.
      timed: cases of the first ranked and the first other suite that are also asked alone and timed.
    """
    clocked = {next((suite.name for suite in suites if suite.ranked is ranked), None) for ranked in (True, False)}
    work = list(_work(entries, suites, settings, directory))
    total = sum(len(cases_of(way, suite, settings.k)) for _, suite, way in _systems(entries, suites))
    left = sum(len(todo) for *_, todo in work)
    show = progress and distributed.is_main()
    with tqdm(total=total, initial=total - left, unit=" cases", disable=not show, smoothing=0.02) as bar:
        for entry in entries:
            own = [part for part in work if part[0] is entry]
            if not own:
                continue
            bar.set_description(f"{entry.name}: opening")
            contestant = entry.open()
            for _, suite, way, todo in own:
                bar.set_description(f"{entry.system(way)} on {suite.name}")
                first = {case.id for case in suite.cases[:timed]} if suite.name in clocked else set()
                path = outcome_path(directory, suite.name, entry.system(way))
                file = OutcomeFile(path) if distributed.is_main() else None
                for start in range(0, len(todo), batch):
                    cases = todo[start : start + batch]
                    asked = [[case for case in cases if (case.id in first) is alone] for alone in (True, False)]
                    found = [
                        outcome
                        for part, alone in zip(asked, (True, False), strict=True)
                        if part
                        for outcome in contestant.outcomes(way, suite, part, alone)
                    ]
                    if file is not None:
                        file.append(found)
                    bar.update(len(cases))
            del contestant


def _systems(entries: Sequence[Entry], suites: Sequence[Suite]) -> Iterator[tuple[Entry, Suite, Way]]:
    return ((entry, suite, way) for entry in entries for suite in suites for way in entry.ways)


def _work(
    entries: Sequence[Entry], suites: Sequence[Suite], settings: Settings, directory: Path
) -> Iterator[tuple[Entry, Suite, Way, list[Case]]]:
    """What is still to be done."""
    for entry, suite, way in _systems(entries, suites):
        path = outcome_path(directory, suite.name, entry.system(way))
        # The main process looks: the others would see files that it is writing.
        done = set(distributed.on_main(_done, str(path)))
        todo = [case for case in cases_of(way, suite, settings.k) if case.id not in done]
        if todo:
            yield entry, suite, way, todo


def _done(path: str) -> list[str]:
    return list(OutcomeFile(path).outcomes) if Path(path).exists() else []
