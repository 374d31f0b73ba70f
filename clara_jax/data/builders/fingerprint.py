"""What a data set says, in 64 characters: two that differ in one character of one record differ in these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from clara_jax.data.builders.schema import Item, Schema

FORMAT = 1  # of stored data sets and of fingerprints; whatever changes either counts it up


class Fingerprint:
    """sha-256 over the items that are added, in order.

    Compression, the cutting into files or shards, and the files' names have no part in it.
    """

    def __init__(self, schema: Schema):
        self._schema = schema
        self._hash = hashlib.sha256(f"clara_jax {schema.item.__name__} {FORMAT}\n".encode())

    def add(self, item: Item) -> None:
        self._hash.update(self._schema.content(item))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def fingerprint(items: Iterable[Item], schema: Schema) -> str:
    """The fingerprint of a split, wherever its items come from."""
    found = Fingerprint(schema)
    for item in items:
        found.add(item)
    return found.hexdigest()


def of_splits(splits: Mapping[str, str]) -> str:
    """The fingerprint of a data set, from those of its splits by name."""
    lines = "".join(f"{name} {splits[name]}\n" for name in sorted(splits))
    return hashlib.sha256(f"clara_jax splits {FORMAT}\n{lines}".encode()).hexdigest()
