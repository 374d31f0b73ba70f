"""Publishing: one commit makes the parts that workers have written rows of the store's table.

Whoever reads sees the store without any of them or with all of them. Publishing again publishes nothing twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata

from clara_jax.errors import ClaraError
from clara_jax.retrieval import ann
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.retrieval.rows import among
from clara_jax.retrieval.shards import Part
from clara_jax.retrieval.staging import DONE, Files, shard_counts
from clara_jax.retrieval.table import KEPT, errors


def publish(store: DocumentStore) -> IndexReport:
    """Make the parts of all shards rows of a store, in one commit, and bring its indexes up to date.

    Documents that are in the store are replaced, whatever was committed since their shard was compressed. The staged
    files are removed; so are, on a disk, the data files that killed workers have left. (A bucket has no locks that
    would say whether somebody is writing one: there, compaction removes them when they are a week old.)

    Raises:
      ClaraError: a shard is not finished, lost a file, or is of another corpus, and is named; nothing is staged; the
        store cannot be written.
    """
    with store.writing():
        parts = _finished(store)
        if store.commit("published", lambda url: _commit(store, url, parts)):
            _index(store, parts)
        _forget(store)
    return sum((IndexReport(*part.report) for part in parts), IndexReport())


def go_on(store: DocumentStore) -> None:
    """Bring a publication to its end that was stopped after its commit; where there is none, do nothing.

    What workers write from now on is of the next publication, which would else be taken for the one that was stopped.

    Raises:
      ClaraError: the store cannot be written.
    """
    with store.writing():
        staged = Files(store)
        names = [name for name in staged.names() if name.endswith(DONE)]

        def shards() -> Iterator[list[Part]]:
            return (_parts([one]) for name in names if (one := staged.read(name)) is not None)

        # A commit takes all files or none: the first shard that has one tells.
        if _are_published(store, next((parts for parts in shards() if any(part.files for part in parts)), [])):
            _index(store, list(itertools.chain.from_iterable(shards())))
            _forget(store)


def discard(store: DocumentStore) -> int:
    """Remove the parts that wait in a store, and return their number.

    Raises:
      ClaraError: the store cannot be written.
    """
    staged = Files(store)
    with store.writing():
        names = [name for name in staged.names() if name.endswith(".json")]
        parts = [part for name in names if not name.endswith(DONE) and (part := staged.read_part(name))]
        there, data = _files(lance.dataset(store.table_url)), Files(store, "data", table=True)
        for name in {file for part in parts for file in part.files} - there:
            data.remove(name)
        _forget(store)
    return len(parts)


def _index(store: DocumentStore, parts: Sequence[Part]) -> None:
    """Bring the indexes up to date with parts that have been committed."""
    with errors(store.location, "indexed"):
        lance.dataset(store.table_url).optimize.optimize_indices()
    # Parts whose search vectors are of another projection, or that have none: all are made anew.
    version = store.projection_version
    ann.finish(store, True if version and any(part.projection != version for part in parts) else None)


def _parts(done: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Return the parts of finished shards by their records."""
    return [Part(**part) for one in done for part in one["parts"]]


def _finished(store: DocumentStore) -> list[Part]:
    """Return the parts of all shards.

    Raises:
      ClaraError: there are none, or not all are finished, or they are of several corpora.
    """
    counts, staged = shard_counts(store), Files(store)
    if len(counts) != 1:
        found = f"shards of {' and of '.join(map(str, sorted(counts)))} wait there; forget them with --discard"
        raise ClaraError(f"{store.location}: {found if counts else 'nothing waits there to be published'}")
    (count,) = counts
    read = {shard: staged.read(f"{count}/{shard}/{DONE}") for shard in range(count)}
    done = {shard: one for shard, one in read.items() if one is not None}
    parts = _parts(done.values())
    if _are_published(store, parts):
        return parts  # a publication was stopped while it removed the staged files
    missing = [shard for shard in read if shard not in done]
    if missing:
        raise ClaraError(
            f"{store.location}: {len(missing)} of {count} shards are not finished: {_some(missing)}; run them "
            f"(--shard I --shards {count}), then publish"
        )
    there = set(Files(store, "data", table=True).names())
    files = {shard: [file for part in _parts([one]) for file in part.files] for shard, one in done.items()}
    lost = [shard for shard, some in files.items() if not there.issuperset(some)]
    if lost:
        raise ClaraError(
            f"{store.location}: files of shards {_some(lost)} have gone; run these shards again, then publish"
        )
    corpora: dict[tuple[int, int], list[int]] = {}
    for shard, one in done.items():
        corpora.setdefault(tuple(one.get("seen", (0, 0))), []).append(shard)
    if len(corpora) > 1:
        found = " and ".join(f"{seen[0]:,} documents (shards {_some(some)})" for seen, some in corpora.items())
        raise ClaraError(
            f"{store.location}: the shards are of several corpora, or of one that has changed: {found}; run all that "
            "are not of the one that is meant again, then publish"
        )
    return parts


def _some(shards: Iterable[int]) -> str:
    first = list(itertools.islice(shards, 11))
    return ", ".join(map(str, first[:10])) + (", ..." if len(first) > 10 else "")


def _are_published(store: DocumentStore, parts: Sequence[Part]) -> bool:
    """Return whether files of parts are in the table: a commit takes all of them or none."""
    files = {file for part in parts for file in part.files}
    return bool(files) and not files.isdisjoint(_files(lance.dataset(store.table_url)))


def _files(dataset: Any) -> set[str]:
    """Return the names of a version's data files."""
    return {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}


def _commit(store: DocumentStore, url: str, parts: Sequence[Part]) -> bool:
    """Commit the fragments of parts, and return whether there was anything to be committed."""
    dataset = lance.dataset(url)
    new = [FragmentMetadata.from_json(json.dumps(fragment)) for part in parts for fragment in part.fragments]
    files = {file for part in parts for file in part.files}
    if _are_published(store, parts):
        return True  # indexes may lack them still
    present = dataset.get_fragments()
    replaced = _replaced(url, parts) if present else pa.array([], pa.large_string())
    removed, changed = _without(present, replaced)
    if not (new or removed or changed):
        return False
    read, top = dataset.version, max((fragment.fragment_id for fragment in present), default=-1)
    committed = _update(dataset, removed, changed, new)
    while committed.version > read + 1:
        # A bucket has no locks: others have committed meanwhile, perhaps the same. What they wrote of these documents
        # is replaced, as it would have been before; of two publications of a file, the first one stays.
        seen: set[str] = set()
        twice, others = [], []
        for fragment in committed.get_fragments():
            names = {file.path for file in fragment.data_files()}
            if not names & files:
                others += [fragment] if fragment.fragment_id > top else []
            elif names & seen:
                twice.append(fragment.fragment_id)
            seen |= names
        removed, changed = _without(others, _replaced(url, parts) if others else replaced)
        if not (twice or removed or changed):
            break
        read = committed.version
        committed = _update(committed, [*twice, *removed], changed, [])
    return True


def _update(dataset: Any, removed: list[int], changed: list[Any], new: list[Any]) -> Any:
    operation = lance.LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=changed, new_fragments=new)
    return lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)


def _replaced(url: str, parts: Sequence[Part]) -> pa.Array:
    """Return the ids of the documents whose rows in the table the parts replace."""
    session = LanceFileSession(f"{url}/data")
    ids = [pa.array([name for part in parts for name in part.outdated], pa.large_string())]
    for file in (file for part in parts for file in part.files):
        rows = session.open_reader(file, columns=["document"]).read_all().to_table()
        ids.append(rows["document"].unique().cast(pa.large_string()))
    return pa.chunked_array(ids, pa.large_string()).unique()


def _without(fragments: Iterable[Any], documents: pa.Array) -> tuple[list[int], list[Any]]:
    """Delete the rows of documents from fragments, not yet committed.

    Returns:
      the ids of fragments of which nothing is left, and the metadata of the others that have changed.
    """
    removed, changed = [], []
    if not len(documents):
        return removed, changed
    for fragment in fragments:
        there = fragment.to_table(columns=["document"])["document"].unique().cast(pa.large_string())
        gone = there.filter(pc.call_function("is_in", [there], pc.SetLookupOptions(documents))).to_pylist()
        if gone:
            left = fragment.delete(among("document", gone))
            removed += [fragment.fragment_id] if left is None else []
            changed += [] if left is None else [left]
    return removed, changed


def _forget(store: DocumentStore) -> None:
    """Remove the staged files, and on a disk the data files that no version has."""
    staged = Files(store)
    # The records of finished shards last: by them, publishing again sees that all is published.
    for name in sorted(staged.names(), key=lambda name: name.endswith(DONE)):
        if name.endswith(".json"):
            staged.remove(name)
    with errors(store.location, "tidied"):
        lance.dataset(store.table_url).cleanup_old_versions(older_than=KEPT, delete_unverified=not store.remote)
