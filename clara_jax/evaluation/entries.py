"""Who takes part, by what was named on the command line: checkpoints, text checkpoints, retrievers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax import bundle as bundles
from clara_jax import distributed
from clara_jax.api import Clara
from clara_jax.bundle import Bundle
from clara_jax.checkpoints.json_file import read_object
from clara_jax.data.importers.retrievers import open_retriever
from clara_jax.data.records import RANKING_STAGES
from clara_jax.data.synthetic import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluation.cases import Suite
from clara_jax.evaluation.contestants import (
    MemoryModel,
    Ranker,
    Settings,
    TextModel,
    random_scores,
    retriever_scores,
    without_adapter,
)
from clara_jax.evaluation.cramming import Cramming
from clara_jax.evaluation.runner import RANK, Entry
from clara_jax.evaluation.ways import CRAMMED, MEMORY_WAYS, RANK_WAY, TEXT_WAYS, WAYS, Way
from clara_jax.inference.memories import Parts, complete_store
from clara_jax.retrieval.memory_store import MemoryStore
from clara_jax.training.config import from_json
from clara_jax.training.resume import CONFIG
from clara_jax.training.stage_data import SYNTHETIC

FRESH = "fresh:"
BASE = "base"  # the model that reads text without any adapter


@dataclasses.dataclass(frozen=True)
class Opening:
    """How checkpoints are opened.

    Attributes:
      base, precision, mesh, batch_size: see `Clara.load`.
      seed: of adapters that are made anew.
      directory: of the report, where memories are kept.
    """

    mesh: jax.sharding.Mesh
    base: str | None
    precision: str | None
    batch_size: int
    seed: int
    directory: Path
    _newest: dict[str, Bundle] = dataclasses.field(default_factory=dict)

    def bundle(self, path: str, rate: int | None = None) -> Bundle:
        """A checkpoint; "fresh:PATH" is its base with adapters that nothing has trained.

        The newest one is kept: one checkpoint is opened once, and of several never two are held here.

        Args:
          rate: instead of the one that it was trained with last.

        Raises:
          ClaraError: it cannot be opened, or has no such rate.
        """
        if path not in self._newest:
            self._newest.clear()
            found = bundles.load(path.removeprefix(FRESH), self.mesh, self.base, self.precision)
            self._newest[path] = bundles.fresh(found, self.seed) if path.startswith(FRESH) else found
        found = self._newest[path]
        if rate is None:
            return found
        try:
            return found.with_memories(found.model.clara.doc_max_length, rate)
        except ClaraError as error:
            raise ClaraError(f"--rates: {path}: {error}") from None

    def clara(self, bundle: Bundle, new_tokens: int) -> Clara:
        """A model whose prompts may be as long as its base allows: what five texts need is not what it was trained
        with."""
        limit = bundle.model.config.max_positions - new_tokens
        return Clara(bundle.with_limits(limit, bundle.model.clara.lora_dropout), self.batch_size)


def named(argument: str) -> tuple[str, str]:
    """NAME=PATH, or PATH, whose last part is the name then.

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
    """What a training run says of itself: its synthetic world, if it has one, and the k of its last ranking stage."""
    config = Path(path.removeprefix(FRESH), CONFIG)
    if not config.is_file():
        return None, None
    run = from_json(read_object(config, "restore it"))
    made = any(source.startswith(SYNTHETIC) for stage in run.stages for source in stage.train_data)
    ks = [stage.top_k for stage in run.stages if stage.name in RANKING_STAGES]
    return run.synthetic if made else None, ks[-1] if ks else None


def chosen(ways: Sequence[Way], names: Sequence[str] | None) -> tuple[Way, ...]:
    """Those of the ways that are among the names; all without names.

    Raises:
      ClaraError: an unknown name.
    """
    for name in names or ():
        if name not in WAYS:
            raise ClaraError(f"--ways: {name!r} is unknown; there are: {', '.join(WAYS)}")
    return tuple(way for way in ways if names is None or way.name in names)


def memory_entry(
    name: str,
    path: str,
    opening: Opening,
    suites: Sequence[Suite],
    settings: Settings,
    ways: Sequence[str] | None,
    cramming: Cramming | None = None,
    crammed: int = 0,
    rate: int | None = None,
) -> Entry:
    """A checkpoint that answers from memories.

    Args:
      cramming: how memories are optimised for the way `CRAMMED`.
      crammed: so many cases of each suite are asked so, of all ways or where that one is named; 0 for none.
      rate: see `Opening.bundle`; it is then part of the name, "trained@8".

    Raises:
      ClaraError: it cannot be opened.
    """
    about = _about(path, opening.bundle(path, rate))
    every = (*MEMORY_WAYS, dataclasses.replace(CRAMMED, first=crammed)) if crammed else MEMORY_WAYS
    asked = chosen(every, ways)
    cramming = cramming if any(way.name == CRAMMED.name for way in asked) else None
    specs = {} if cramming is None else {CRAMMED.name: dataclasses.asdict(cramming)}

    def open_model() -> MemoryModel:
        clara = opening.clara(opening.bundle(path, rate), 4 * settings.max_new_tokens)
        return MemoryModel(clara, memories(clara, suites, opening.directory / "memories"), settings, cramming)

    return Entry(name if rate is None else f"{name}@{rate}", about, asked, open_model, specs)


def memories(clara: Clara, suites: Sequence[Suite], folder: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """What reads the memories of the suites' documents, which are compressed first where they are not yet.

    Args:
      folder: of stores, one for each compressor: models that share one share its memories.
    """
    model, bundle = clara.bundle.model, clara.bundle
    sizes = (model.clara.memory_tokens, model.config.width, model.dtype.name)
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


def text_entry(
    name: str, path: str, opening: Opening, settings: Settings, ways: Sequence[str] | None, adapter: bool = True
) -> Entry:
    """A checkpoint that reads its documents as text; without its adapter it is its base.

    Raises:
      ClaraError: it cannot be opened.
    """

    def bundle() -> Bundle:
        found = opening.bundle(path)
        return found if adapter else without_adapter(found)

    def open_model() -> TextModel:
        clara = opening.clara(bundle(), 4 * settings.max_new_tokens)
        return TextModel(clara, Ranker(retriever_scores(lambda texts: open_retriever("bm25", texts))).order, settings)

    about = _about(path, bundle())
    if not adapter:  # whichever checkpoint it was taken from
        about = {field: about[field] for field in ("base", "base_hash", "compress_rate", "doc_max_length", "precision")}
    return Entry(name, about, chosen(TEXT_WAYS, ways), open_model)


def rank_entries(retrievers: Sequence[str], settings: Settings) -> list[Entry]:
    """BM25, random order, and retrievers by name (see `open_retriever`).

    Raises:
      ClaraError: one that cannot be opened.
    """
    for name in retrievers:
        open_retriever(name, ["a text"])
    entries = [
        Entry(f"{RANK}/random", {"seed": settings.seed}, (RANK_WAY,), lambda: Ranker(random_scores(settings.seed)))
    ]
    for name in dict.fromkeys(("bm25", *retrievers)):
        own = name.rstrip("/").replace("dense:", "").rpartition("/")[2]

        def open_ranker(name: str = name) -> Ranker:
            return Ranker(retriever_scores(lambda texts: open_retriever(name, texts)))

        entries.append(Entry(f"{RANK}/{own}", {"retriever": name}, (RANK_WAY,), open_ranker))
    return entries


def _about(path: str, bundle: Bundle) -> dict[str, Any]:
    return {
        "path": path,
        "fingerprint": bundle.fingerprint(),
        "base": bundle.base["name"],
        "base_hash": bundle.base["hash"],
        "stages": [entry.get("stage", "") for entry in bundle.history],
        "compress_rate": bundle.model.clara.compress_rate,
        "doc_max_length": bundle.model.clara.doc_max_length,
        "precision": bundle.model.precision,
    }
