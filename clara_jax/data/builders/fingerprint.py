"""The fingerprint of a data set's content, 64 characters: any change of a record changes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from clara_jax.data.builders.schema import Item, Schema

FORMAT = 1  # of stored data sets and of fingerprints; whatever changes either counts it up


class Fingerprint:
    """SHA-256 over the items that are added, in order.

    It does not depend on compression, the division into files or shards, and the files' names.
    """

    def __init__(self, schema: Schema):
        self._schema = schema
        self._hash = hashlib.sha256(f"clara_jax {schema.item.__name__} {FORMAT}\n".encode())

    def add(self, item: Item) -> None:
        """Add an item."""
        self._hash.update(self._schema.content(item))

    def hexdigest(self) -> str:
        """Return the fingerprint of the items added so far."""
        return self._hash.hexdigest()


def fingerprint(items: Iterable[Item], schema: Schema) -> str:
    """Return the fingerprint of a split, wherever its items come from."""
    found = Fingerprint(schema)
    for item in items:
        found.add(item)
    return found.hexdigest()


def of_splits(splits: Mapping[str, str]) -> str:
    """Return the fingerprint of a data set, from those of its splits by name."""
    lines = "".join(f"{name} {splits[name]}\n" for name in sorted(splits))
    return hashlib.sha256(f"clara_jax splits {FORMAT}\n{lines}".encode()).hexdigest()
