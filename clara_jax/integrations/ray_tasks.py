"""Compression of a corpus by the workers of a Ray cluster, each a shard at a time.

`python -m clara_jax.compress --ray ADDRESS --shards N ...` comes here. Ray starts a task again whose process or machine
has gone; it goes on where the one before was.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from clara_jax import compile_cache
from clara_jax.errors import ClaraError
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.retrieval.read_report import ReadReport
from clara_jax.retrieval.shards import Shard

LOCAL = "local"  # the address that stands for a cluster of this machine alone, which is started
_CPU, _GPU = "CPU", "GPU"  # resources that every cluster knows


def compress(
    address: str,
    shards: int,
    resources: Mapping[str, float],
    model: Mapping[str, Any],
    corpus: Sequence[str],
    follow_links: bool = False,
    strict: bool = False,
) -> tuple[IndexReport, ReadReport]:
    """Compress a corpus into parts beside a store, to be published.

    Args:
      address: of the cluster, as ``ray.init`` takes it, or `LOCAL`.
      shards: into how many the corpus is divided, one task each; a multiple of the workers.
      resources: of each task, e.g. ``{"TPU": 4}``; as many run at a time as the cluster has of them.
      model: the arguments of `RagPipeline.open`. What they and ``corpus`` name must be at the same place on every
        machine of the cluster.
      corpus: as of `RagPipeline.read`.
      follow_links: see `RagPipeline.read`.
      strict: the first document that cannot be read is an error.

    Returns:
      the counts, and what became of the corpus.

    Raises:
      ClaraError: there is no cluster at the address, or it has too little for one task; an error of a worker.
    """
    try:
        ray.init(None if address == LOCAL else address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClaraError(f"--ray: no cluster at {address}: {' '.join(str(error).split())[:200]}") from None
    try:
        _check(resources)
        named = dict(num_cpus=resources.get(_CPU, 0), num_gpus=resources.get(_GPU, 0))
        others = {name: amount for name, amount in resources.items() if name not in (_CPU, _GPU)}
        task: Any = ray.remote(max_retries=-1, resources=others, **named)(_work)
        given = tuple(sorted(model.items())), tuple(corpus), follow_links, strict
        waiting = [task.remote(Shard(index, shards), *given) for index in range(shards)]
        total, report = IndexReport(), ReadReport()
        with tqdm(total=shards, unit=" shards", desc="compressing") as bar:
            while waiting:
                (done, *_), waiting = ray.wait(waiting)
                counts, read = _result(done)
                total += IndexReport(*counts)
                report.join(read)
                bar.set_postfix_str(f"{total.compressed:,} chunks", refresh=False)
                bar.update()
        return total, report
    finally:
        ray.shutdown()


def _check(resources: Mapping[str, float]) -> None:
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in resources.items()) for node in there):
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
        raise ClaraError(f"--resources: no machine of the cluster has {wanted}; see ray status")


def _result(done: Any) -> tuple[tuple[int, ...], ReadReport]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ClaraError):
            raise error.cause from None
        raise


def _work(
    shard: Shard, model: tuple[tuple[str, Any], ...], corpus: Sequence[str], follow_links: bool, strict: bool
) -> tuple[tuple[int, ...], ReadReport]:
    """Compress a shard in a worker of Ray's, and return its counts and what became of its corpus."""
    pipeline, report = _opened(model), ReadReport(strict)
    counts = pipeline.stage(pipeline.read(corpus, follow_links, report, shard.holds), shard)
    report.ids.clear()  # of millions, whom nobody asks for
    report.paths.clear()
    return dataclasses.astuple(counts), report


@functools.lru_cache(1)
def _opened(model: tuple[tuple[str, Any], ...]) -> RagPipeline:
    """Open the model and the store, once in each process: Ray gives one process many shards."""
    compile_cache.enable()
    return RagPipeline.open(**dict(model))


def absolute(path: str) -> str:
    """Return a path as workers in other folders find it; a URL, and a name that is no path, as they are."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if "://" not in path and os.path.exists(expanded) else path
