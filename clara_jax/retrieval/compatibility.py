"""Compatibility of a model with a store: the precision, compress rate and memory count in which it is opened."""

from __future__ import annotations

from collections.abc import Callable

import jax

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.errors import ClaraError
from clara_jax.model.precision import AUTO, resolve
from clara_jax.model.sharding import platform
from clara_jax.retrieval.document_store import DocumentStore

_ALIKE = {"float32", "mixed"}  # interchangeable precisions: the processor decides which of them is faster


def suited(load: Callable[[str], Bundle], trained: str, mesh: jax.sharding.Mesh, store: DocumentStore | None) -> Bundle:
    """Open a model in the precision that suits a store and the devices.

    A model of one of the precisions `_ALIKE` is opened in that of the store's memories, or for a new store in that for
    the devices; any other model as it was trained.

    Args:
      load: opens the model in a precision.
      trained: that in which it was trained.
      mesh: of the devices.
      store: None where there is none yet.
    """
    trained, usual = (resolve(precision, platform(mesh)) for precision in (trained, AUTO))
    if not {trained, usual} <= _ALIKE:
        return load(trained)
    wanted, opened = None if store is None else store.fingerprint, {}
    for name in sorted(_ALIKE, key=lambda name: name != usual):
        opened[name] = load(name)
        if wanted in (None, opened[name].compressor_fingerprint()):
            return opened[name]
    return opened[trained]


def as_stored(
    bundle: Bundle, store: DocumentStore | None, rate: int | None = None, memory_count: str | None = None
) -> Bundle:
    """Return the model at a store's compress rate and memory count, as far as no other is asked for.

    Args:
      bundle: the model.
      store: None where there is none: what is not asked for stays as it was trained.
      rate: asked for; a model with different memory tokens has only one.
      memory_count: asked for.

    Raises:
      ClaraError: a rate that the model does not have; another memory count than the store's.
    """
    clara = bundle.model.clara
    if store is not None:
        count = store.encoding.shape[0]
        if rate is None and not clara.different_mem_tokens and not clara.doc_max_length % count:
            rate = clara.doc_max_length // count
        stored = store.encoding.memory_count
        if memory_count not in (None, stored):
            raise ClaraError(
                f"{store.location}: holds memories in {stored} number, not {memory_count}; name another directory, or "
                f"ask for {stored}"
            )
        memory_count = stored
    return bundle.at_rate(rate, memory_count)
