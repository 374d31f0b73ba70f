"""Staging: what workers of shards have written beside a store's table, and what they need to go on after a kill.

A part's rows are a fragment of the table that no version of it names. A small file in the store's folder ``.staged``
says that the part is whole; it is written last, whole or not at all. Data files without one are what a killed worker
has left: nobody reads them. `clara_jax.retrieval.publishing` makes all parts of all shards rows of the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
from lance.file import LanceFileSession
from lance.fragment import write_fragments

from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole, sync
from clara_jax.locks import locked
from clara_jax.retrieval.ann import Projection
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import ChunkedDocument
from clara_jax.retrieval.rows import METADATA, as_rows
from clara_jax.retrieval.shards import Part, Shard
from clara_jax.retrieval.table import errors
from clara_jax.strict_json import parse, sealed, unsealed
from clara_jax.text.documents import Chunk, DocumentMetadata

FOLDER, DONE = ".staged", "done.json"
_PART = re.compile(r"([0-9]+)-([0-9]+)-[0-9a-f]+\.json")


class Staging:
    """The parts of a shard of a store.

    Args:
      store: of the compressor.
      shard: that a worker compresses.

    Raises:
      ClaraError: the corpus was divided into another number of shards before.
    """

    def __init__(self, store: DocumentStore, shard: Shard):
        self.store, self.shard = store, shard
        others = shard_counts(store) - {shard.count}
        if others:
            raise ClaraError(
                f"{store.location}: parts of {min(others)} shards wait there, not of {shard.count}; go on with "
                f"--shards {min(others)}, or forget them with --discard"
            )
        self._folder = Files(store, f"{shard.count}/{shard.index}")
        self._data = Files(store, "data", table=True)
        self._lengths: dict[int, int] = {}
        self._projection: tuple[int, Projection | None] = 0, None
        self._locks = contextlib.ExitStack()

    def begin(self) -> None:
        """Keep other workers away from the shard, and look at what is there; `end` lets them.

        Raises:
          ClaraError: another process works on the shard (a bucket has no locks: there, the work is done twice); the
            folder cannot be written.
        """
        if not self.store.remote:
            busy = f"{self.store.location}: another process works on {self.shard}"
            with errors(self.store.location, "written"):
                self._locks.enter_context(locked(self._folder.path(".lock"), busy))
        self.store.have_columns(METADATA)
        for name in self._folder.names():
            if found := _PART.match(name):
                start, length = map(int, found.groups())
                self._lengths[start] = max(length, self._lengths.get(start, 0))
        with self.store.writing():  # nobody publishes meanwhile
            self._folder.remove(DONE)  # the shard is not finished until it is gone through again

    def end(self) -> None:
        """Let other workers begin."""
        self._locks.close()

    def length_at(self, start: int) -> int:
        """Return the number of documents of the part that begins with a document, 0 where there is none yet."""
        return self._lengths.get(start, 0)

    def identity(self, documents: Sequence[ChunkedDocument], keys: Sequence[bytes]) -> str:
        """Return the identity of a part: a hash of its documents and of what its rows depend on.

        Args:
          documents: in order.
          keys: of their chunks.
        """
        about = self.store.fingerprint, self.store.encoding.name, *self.store.encoding.shape
        stated = [
            (one.id, dataclasses.astuple(one.metadata), [dataclasses.astuple(chunk) for chunk in one.chunks])
            for one in documents
        ]
        digest = hashlib.sha256(json.dumps([*about, stated]).encode())
        digest.update(b"".join(keys))
        return digest.hexdigest()

    def find(self, start: int, documents: int, identity: str) -> dict[str, Any] | None:
        """Return "name", "report" and "kept" of a part that was written before, None where it is not whole."""
        part = self._folder.read_part(Part(start, documents, identity, (), (), "").name)
        if part is None or not all(map(self._data.has, part.files)):
            return None
        return {"name": part.name, "report": part.report, "kept": part.kept}

    def write(
        self,
        part: Part,
        chunks: Sequence[Chunk],
        keys: Sequence[bytes],
        memories: np.ndarray,
        metadata: Mapping[str, DocumentMetadata],
    ) -> str:
        """Write a part, and return its name.

        Args:
          part: without fragments.
          chunks: its rows; there may be none.
          keys: of the chunks.
          memories: of the chunks, [n, M, E].
          metadata: of their documents, by id.

        Raises:
          ClaraError: the file system or the bucket refuses; the part is not there then.
        """
        version = self.store.projection_version
        if version != self._projection[0]:
            self._projection = version, Projection.read(self.store)
        projection = self._projection[1]
        fragments: list[Any] = []
        if chunks:
            vectors = None if projection is None else projection.vectors(memories)
            rows = as_rows(chunks, keys, self.store.encoding.encode(memories), vectors, metadata)
            with errors(self.store.location, "written"):
                fragments = write_fragments(rows, lance.dataset(self.store.table_url), mode="append")
        part = dataclasses.replace(part, fragments=[one.to_json() for one in fragments], projection=version)
        if not self.store.remote:
            for name in part.files:  # on the disk before the file that says so
                sync(self._data.path(name))
        self._folder.write(part.name, sealed(dataclasses.asdict(part)))
        return part.name

    def finish(self, names: Sequence[str]) -> None:
        """Record that the shard is finished, which parts it consists of, and of which documents it was chosen.

        Raises:
          ClaraError: one of them has gone; the file system or the bucket refuses.
        """
        parts = [self._folder.read_part(name) for name in names]
        if None in parts:
            raise ClaraError(f"{self.store.location}: a part of {self.shard} has gone meanwhile; run it again")
        seen = self.shard.seen
        done = {"parts": [dataclasses.asdict(part) for part in parts if part], "seen": [seen.documents, seen.total]}
        self._folder.write(DONE, sealed(done))


class Files:
    """The files of a folder of a store, on a disk or in a bucket, which is reached as the store is.

    Args:
      store: that the folder belongs to.
      name: of the folder, in `FOLDER`, or in that of the table.
      table: whether it is in that of the table.
    """

    def __init__(self, store: DocumentStore, name: str = "", table: bool = False):
        self._location = store.location
        place = f"{store.table_url if table else f'{store.url}/{FOLDER}'}/{name}".rstrip("/")
        self._local = None if store.remote else Path(place.removeprefix("file://"))
        with errors(self._location, "opened"):
            if self._local:
                self._local.mkdir(parents=True, exist_ok=True)
            self._session = LanceFileSession(str(self._local or place))

    def path(self, name: str) -> Path:
        """Return the path of a file on a disk."""
        assert self._local is not None
        return self._local / name

    def names(self) -> list[str]:
        """Return the names of all files, "folder/file" for those of folders within."""
        with errors(self._location, "read"):
            return self._session.list()

    def has(self, name: str) -> bool:
        """Return whether there is a file."""
        with errors(self._location, "read"):
            return self._session.contains(name)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value)
        if self._local:
            with replaced_when_whole(self._local / name) as path:
                path.write_text(text)
            return
        with tempfile.TemporaryDirectory() as folder, errors(self._location, "written"):
            file = os.path.join(folder, "file")
            Path(file).write_text(text)
            self._session.upload_file(file, name)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a sealed JSON object, None where there is none, or it is damaged."""
        if not self.has(name):
            return None
        with tempfile.TemporaryDirectory() as folder, errors(self._location, "read"):
            file = os.path.join(folder, "file")
            self._session.download_file(name, file)
            with contextlib.suppress(json.JSONDecodeError):
                value = parse(Path(file).read_bytes())
                return unsealed(value, needed=True) if isinstance(value, dict) else None
        return None

    def read_part(self, name: str) -> Part | None:
        """Return the part that a file holds, None where there is none, or it is damaged."""
        value = self.read(name)
        with contextlib.suppress(TypeError):  # one of another version has other fields
            return None if value is None else Part(**value)
        return None

    def remove(self, name: str) -> None:
        """Remove a file where there is one."""
        with errors(self._location, "written"):
            if self._session.contains(name):
                self._session.delete_file(name)


def shard_counts(store: DocumentStore) -> set[int]:
    """Return into how many shards the corpora were divided whose parts wait in a store."""
    tops = (name.partition("/")[0] for name in Files(store).names() if name.endswith(".json"))
    return {int(top) for top in tops if top.isdigit()}
