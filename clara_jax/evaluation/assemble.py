"""Build the report of a directory of predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax import distributed
from clara_jax.analysis.analysis import analyze
from clara_jax.evaluation.report import build
from clara_jax.evaluation.runner import INSIDE, PLAN, SystemSpec, read_predictions, read_suites
from clara_jax.evaluation.systems import MemoryModel, Settings
from clara_jax.files import replaced_when_whole
from clara_jax.formats.json_file import read_object
from clara_jax.metrics.cases import Suite
from clara_jax.training.run_directory import environment


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
        if spec.remembers and distributed.on_main(_asked, str(path)) != asked:
            model = spec.open()
            assert isinstance(model, MemoryModel)
            sections = analyze(model.clara, suites, limit, settings.seed, settings.k, model.read_memories)
            distributed.on_main(_write, path, {"asked": asked, "sections": sections})


def report_of(directory: Path, resamples: int, seed: int) -> dict[str, Any]:
    """Return the report on everything in a directory.

    Args:
      directory: where `runner.run` has written.
      resamples: draws of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ClaraError: a file in it is damaged.
    """
    plan = read_object(directory / PLAN, "name a directory that evaluate has made")
    suites, systems = read_suites(directory), plan["systems"]
    predictions = {suite.name: read_predictions(directory, suite.name, systems) for suite in suites}
    report = build(plan | {"environment": environment()}, suites, predictions, seed, resamples=resamples)
    inside = {}
    for model in plan["models"]:
        path = directory / INSIDE / f"{model}.json"
        if path.exists():
            sections = read_object(path, "remove it and give the command again")["sections"]
            for name, section in sections.items():
                inside[f"{model}/{name}"] = {**section, "title": f"{model}: {section['title']}"}
    return report | {"inside": inside}


def _asked(path: str) -> Any:
    return read_object(Path(path), "remove it")["asked"] if Path(path).exists() else None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
