"""The systems that the command line names: checkpoints, text checkpoints, retrievers."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax import distributed
from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.data.importers.retrievers import open_retriever
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.evaluation.baselines import Cramming
from clara_jax.evaluation.runner import RANK, SystemSpec
from clara_jax.evaluation.systems import (
    MemoryModel,
    Ranker,
    Settings,
    TextModel,
    random_scores,
    retriever_scores,
    without_adapter,
)
from clara_jax.formats.json_file import read_object
from clara_jax.inference.memory_cache import Parts, complete_store
from clara_jax.inference.memory_store import MemoryStore
from clara_jax.input_pipeline.records import RANKING_STAGES
from clara_jax.memory_count import FIXED
from clara_jax.metrics.cases import Suite
from clara_jax.metrics.controls import (
    CONDITIONS,
    CRAMMED,
    MEMORY_CONDITIONS,
    RANK_CONDITION,
    TEXT_CONDITIONS,
    Condition,
)
from clara_jax.training.config_parsing import from_json
from clara_jax.training.resume import CONFIG
from clara_jax.training.stage_data import SYNTHETIC

FRESH = "fresh:"
BASE = "base"  # the name of the base model, which reads text without any adapter


@dataclasses.dataclass(frozen=True)
class CheckpointOpener:
    """Opens checkpoints with the same options, and caches the newest one.

    Attributes:
      mesh: see `Clara.load`.
      base: likewise.
      precision: likewise.
      batch_size: likewise.
      seed: of freshly initialised adapters.
      directory: of the report, where memories are kept.
    """

    mesh: jax.sharding.Mesh
    base: str | None
    precision: str | None
    batch_size: int
    seed: int
    directory: Path
    _newest: dict[str, Bundle] = dataclasses.field(default_factory=dict)

    def bundle(self, path: str, rate: int | None = None, memory_count: str | None = None) -> Bundle:
        """Open a checkpoint; "fresh:PATH" is its base with untrained adapters.

        The newest one is cached: one checkpoint is opened once, and never two are held here.

        Args:
          path: a checkpoint, or "fresh:PATH".
          rate: the compress rate, instead of the one that it was trained with last.
          memory_count: instead of the one that it was trained with, see `Bundle.with_memories`.

        Raises:
          ClaraError: it cannot be opened, or has no such rate.
        """
        if path not in self._newest:
            self._newest.clear()
            found = opening.load(path.removeprefix(FRESH), self.mesh, self.base, self.precision)
            self._newest[path] = opening.fresh(found, self.seed) if path.startswith(FRESH) else found
        try:
            return self._newest[path].at_rate(rate, memory_count)
        except ClaraError as error:
            raise ClaraError(f"--compress-rate: {path}: {error}") from None

    def clara(self, bundle: Bundle, new_tokens: int) -> Clara:
        """Return a model whose prompts may be as long as its base allows.

        The limit of its training is too low for a prompt of several texts.

        Args:
          bundle: the model's checkpoint.
          new_tokens: of the longest answer.
        """
        limit = bundle.model.config.max_positions - new_tokens
        return Clara(bundle.with_limits(limit, bundle.model.clara.lora_dropout), self.batch_size)


def named(argument: str) -> tuple[str, str]:
    """Return name and path of NAME=PATH, or of PATH, whose last part is the name then.

    Raises:
      ClaraError: a name that cannot be one.
    """
    name, equals, path = argument.partition("=")
    if not equals:
        name, path = Path(argument.removeprefix(FRESH)).name, argument
    if not name or "/" in name or "__" in name or name in (BASE, RANK):
        raise ClaraError(f'{argument!r}: the name {name!r} is not possible; give NAME=PATH, e.g. "trained={path}"')
    return name, path


def trained_on(path: str) -> tuple[SyntheticConfig | None, int | None]:
    """Return a training run's synthetic world, if it has one, and the k of its last ranking stage."""
    config = Path(path.removeprefix(FRESH), CONFIG)
    if not config.is_file():
        return None, None
    run = from_json(read_object(config, "restore it"))
    made = any(source.startswith(SYNTHETIC) for stage in run.stages for source in stage.data.train)
    ks = [stage.topk.k for stage in run.stages if stage.name in RANKING_STAGES]
    return run.synthetic if made else None, ks[-1] if ks else None


def chosen(conditions: Sequence[Condition], names: Sequence[str] | None) -> tuple[Condition, ...]:
    """Return the conditions that are among the names; all without names.

    Raises:
      ClaraError: an unknown name.
    """
    for name in names or ():
        if name not in CONDITIONS:
            raise ClaraError(f"--condition: {name!r} is unknown; there are: {', '.join(CONDITIONS)}")
    return tuple(condition for condition in conditions if names is None or condition.name in names)


def memory_spec(
    name: str,
    path: str,
    opener: CheckpointOpener,
    suites: Sequence[Suite],
    settings: Settings,
    conditions: Sequence[str] | None,
    cramming: Cramming | None = None,
    crammed: int = 0,
    rate: int | None = None,
    memory_count: str | None = None,
) -> SystemSpec:
    """Return the specification of a checkpoint that answers from memories.

    Args:
      name: of the model.
      path: of the checkpoint.
      opener: opens the checkpoint.
      suites: whose documents are compressed.
      settings: those of all systems.
      conditions: their names; None for all.
      cramming: how memories are optimised for the condition `CRAMMED`.
      crammed: cases of each suite that are asked under `CRAMMED`, where ``conditions`` has it; 0 for none.
      rate: see `CheckpointOpener.bundle`; it is then part of the name, "trained@8".
      memory_count: likewise, "trained@proportional".

    Raises:
      ClaraError: it cannot be opened.
    """
    about = _about(path, opener.bundle(path, rate, memory_count))
    every = (*MEMORY_CONDITIONS, dataclasses.replace(CRAMMED, first=crammed)) if crammed else MEMORY_CONDITIONS
    asked = chosen(every, conditions)
    cramming = cramming if any(condition.name == CRAMMED.name for condition in asked) else None
    specs = {} if cramming is None else {CRAMMED.name: dataclasses.asdict(cramming)}

    def open_model() -> MemoryModel:
        clara = opener.clara(opener.bundle(path, rate, memory_count), 4 * settings.max_new_tokens)
        return MemoryModel(clara, memories(clara, suites, opener.directory / "memories"), settings, cramming)

    name = "@".join([name, *(str(asked_for) for asked_for in (rate, memory_count) if asked_for is not None)])
    return SystemSpec(name, about, asked, open_model, specs)


def warn_of_precisions(systems: Sequence[SystemSpec]) -> None:
    """Warn where models that answer from memories are opened in different precisions.

    A memory's precision is part of its fingerprint, so documents are then compressed once for each, and what differs
    between the models is not their training alone.
    """
    names: dict[str, list[str]] = {}
    for system in (system for system in systems if system.remembers):
        names.setdefault(system.about["precision"], []).append(system.name)
    if len(names) > 1:
        opened = "; ".join(f"{precision}: {', '.join(of)}" for precision, of in names.items())
        warnings.warn(
            f"models of different precisions share no memories and differ by more than their training ({opened}); "
            "--precision opens all in one",
            ClaraWarning,
            stacklevel=2,
        )


def memories(clara: Clara, suites: Sequence[Suite], folder: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Return the function that reads the memories of the suites' documents, after compressing those that are missing.

    Args:
      clara: the model whose compressor makes them.
      suites: whose documents are compressed.
      folder: of stores, one for each compressor: models that share one share its memories.
    """
    model, bundle = clara.bundle.model, clara.bundle
    sizes = (model.clara.memory_tokens, model.config.embed_dim, model.dtype.name)
    texts = list(dict.fromkeys(text for suite in suites for case in suite.cases for text in case.documents))
    documents = [np.array(ids, np.int32) for ids in bundle.tokenizer.encode_documents(texts)]
    fingerprint = bundle.compressor_fingerprint()

    def open_store() -> MemoryStore:
        return MemoryStore(os.fspath(folder / fingerprint[:16]), fingerprint, *sizes)

    def work(parts: Parts, count: int) -> None:
        with tqdm(
            total=count,
            unit=" documents",
            desc="compressing",
            leave=False,
            smoothing=0.05,
            disable=not distributed.is_main(),
        ) as bar:
            for done, _ in parts:
                bar.update(done - bar.n)

    return complete_store(open_store, bundle, documents, clara.batch_size, work).read_documents


def text_spec(
    name: str,
    path: str,
    opener: CheckpointOpener,
    settings: Settings,
    conditions: Sequence[str] | None,
    adapter: bool = True,
    memory_count: str | None = None,
) -> SystemSpec:
    """Return the specification of a checkpoint that reads its documents as text.

    Args:
      name: of the model.
      path: of the checkpoint.
      opener: opens the checkpoint.
      settings: those of all systems.
      conditions: their names; None for all.
      adapter: False for the base model, without the checkpoint's adapter.
      memory_count: see `CheckpointOpener.bundle`; for the condition that cuts texts to as many tokens as memories.

    Raises:
      ClaraError: it cannot be opened.
    """

    def bundle() -> Bundle:
        found = opener.bundle(path, None, memory_count)
        return found if adapter else without_adapter(found)

    def open_model() -> TextModel:
        clara = opener.clara(bundle(), 4 * settings.max_new_tokens)
        return TextModel(clara, Ranker(retriever_scores(lambda texts: open_retriever("bm25", texts))).order, settings)

    about = _about(path, bundle())
    if not adapter:  # whichever checkpoint it was taken from
        about = {field: about[field] for field in ("base", "base_hash", "compress_rate", "doc_max_length", "precision")}
    return SystemSpec(name, about, chosen(TEXT_CONDITIONS, conditions), open_model)


def ranker_specs(retrievers: Sequence[str], settings: Settings) -> list[SystemSpec]:
    """Return the specifications of BM25, random order, and retrievers by name (see `open_retriever`).

    Raises:
      ClaraError: one that cannot be opened.
    """
    for name in retrievers:
        open_retriever(name, ["a text"])
    specs = [
        SystemSpec(
            f"{RANK}/random", {"seed": settings.seed}, (RANK_CONDITION,), lambda: Ranker(random_scores(settings.seed))
        )
    ]
    for name in dict.fromkeys(("bm25", *retrievers)):
        short = name.rstrip("/").replace("dense:", "").rpartition("/")[2]

        def open_ranker(name: str = name) -> Ranker:
            return Ranker(retriever_scores(lambda texts: open_retriever(name, texts)))

        specs.append(SystemSpec(f"{RANK}/{short}", {"retriever": name}, (RANK_CONDITION,), open_ranker))
    return specs


def _about(path: str, bundle: Bundle) -> dict[str, Any]:
    count = bundle.model.clara.memory_count
    return {
        "path": path,
        "fingerprint": bundle.fingerprint(),
        "base": bundle.base["name"],
        "base_hash": bundle.base["hash"],
        "stages": [entry.get("stage", "") for entry in bundle.history],
        "compress_rate": bundle.model.clara.compress_rate,
        "doc_max_length": bundle.model.clara.doc_max_length,
        "precision": bundle.model.precision,
        "quantization": bundle.model.quantization,
        # Not where it is fixed: reports from before it go on.
        **({} if count == FIXED else {"memory_count": count}),
    }
