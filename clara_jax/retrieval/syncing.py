"""Which documents of a store are gone from the folders that it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from clara_jax.data.corpus.files import real_path
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import is_remote
from clara_jax.retrieval.chunk_reader import StoredDocument
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.read_report import ReadReport


def folders(inputs: Sequence[str]) -> list[str]:
    """Return the real paths of the folders, files and data sets that a store is to be brought in line with.

    Raises:
      ClaraError: a pattern, of which nobody knows what it matched before; or a remote file.
    """
    expanded = [os.path.expanduser(os.path.expandvars(given)) for given in inputs]
    for given, path in zip(inputs, expanded, strict=True):
        if is_remote(given) or not os.path.exists(path):
            raise ClaraError(f"--sync: {given} is no folder or file that is there; name the folder (not a pattern)")
    return [real_path(path) for path in expanded]


def gone(store: DocumentStore, scopes: Sequence[str], report: ReadReport) -> list[str]:
    """Return the ids of documents that came from some folders and are no longer in them.

    Of a file or a folder that could not be read, nothing is gone. Nor is anything of a folder in which no file was
    found: it may be a disk that is not there.

    Args:
      store: with the documents that have just been read.
      scopes: real paths of the folders (`folders`).
      report: of reading them.
    """
    there = [scope for scope in scopes if any(_within(path, scope) for path in report.paths)]
    missing = []
    for document in store.documents()[0]:
        path = document.path or _former_path(document, there)
        inside = path and any(_within(path, scope) for scope in there)
        if inside and document.id not in report.ids and report.failed.isdisjoint(_with_parents(path)):
            missing.append(document.id)
    return missing


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while (parent := os.path.dirname(path)) != path:
        path = parent
        yield path


def _former_path(document: StoredDocument, scopes: Sequence[str]) -> str:
    """Return the real path of a document that was stored without it, where its source and id say it; else ""."""
    if document.source in ("", document.id):  # of no folder: a walk of one leaves its name before a file's
        return ""
    path = real_path(document.source)
    belongs = any(_within(path, scope) and os.path.relpath(path, scope) == document.id for scope in scopes)
    return path if belongs else ""
