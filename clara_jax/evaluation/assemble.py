"""From a directory of outcomes to its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax import distributed
from clara_jax.checkpoints.json_file import read_object
from clara_jax.evaluation.cases import Suite
from clara_jax.evaluation.contestants import MemoryModel, Settings
from clara_jax.evaluation.inside.look import look
from clara_jax.evaluation.report import build
from clara_jax.evaluation.runner import INSIDE, PLAN, Entry, read_outcomes, read_suites
from clara_jax.files import replaced_when_whole
from clara_jax.training.run_directory import environment


def look_inside(
    entries: Sequence[Entry], suites: Sequence[Suite], settings: Settings, directory: Path, limit: int
) -> None:
    """Looks inside each model that answers from memories, where that was not done yet for these suites.

    Args:
      limit: cases that are looked at.
    """
    asked = {"limit": limit, "suites": {suite.name: suite.digest() for suite in suites}}
    for entry in entries:
        path = directory / INSIDE / f"{entry.name}.json"
        if entry.remembers and distributed.on_main(_asked, str(path)) != asked:
            model = entry.open()
            assert isinstance(model, MemoryModel)
            sections = look(model.clara, suites, limit, settings.seed, settings.k, model.read)
            distributed.on_main(_write, path, {"asked": asked, "sections": sections})


def report_of(directory: Path, resamples: int, seed: int) -> dict[str, Any]:
    """The report of all that lies in a directory.

    Args:
      resamples, seed: of the bootstrap.

    Raises:
      ClaraError: a file in it is not what it was.
    """
    plan = read_object(directory / PLAN, "name a directory that evaluate has made")
    suites, systems = read_suites(directory), plan["systems"]
    outcomes = {suite.name: read_outcomes(directory, suite.name, systems) for suite in suites}
    report = build(plan | {"environment": environment()}, suites, outcomes, seed, resamples=resamples)
    inside = {}
    for model in plan["models"]:
        path = directory / INSIDE / f"{model}.json"
        if path.exists():
            sections = read_object(path, "remove it and give the command again")["sections"]
            inside |= {
                f"{model}/{name}": {**own, "title": f"{model}: {own['title']}"} for name, own in sections.items()
            }
    return report | {"inside": inside}


def _asked(path: str) -> Any:
    return read_object(Path(path), "remove it")["asked"] if Path(path).exists() else None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
