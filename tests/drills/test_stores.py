"""Several processes on one store: every addition is there once, every question sees one version, damage is seen.

The fast tests do a little of it; the drills much: ``python -m pytest -n 0 -m drill tests/drills/test_stores.py``.
"""

import multiprocessing
import random
import time
import traceback

import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.retrieval import document_store, table
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.verifying import damaged_chunks
from clara_jax.text.documents import Chunk

M, E = 2, 8


class Bucket(table.Locks):
    """As at s3://...: no file is locked. A bucket itself is not to be had; its commits are those of a directory."""

    def __init__(self, location):
        super().__init__("s3://bucket")


@pytest.fixture(params=["a directory", "a bucket"])
def place(request, tmp_path, monkeypatch):
    """A store's location, and whether processes are to take it for a bucket."""
    bucket = request.param == "a bucket"
    if bucket:
        monkeypatch.setattr(document_store, "Locks", Bucket)
    location = f"file://{tmp_path}/store" if bucket else str(tmp_path / "store")
    make(location)
    return location, bucket


def make(location):
    return DocumentStore.open_or_make(location, "f" * 64, "float32", M, E)


def version(document, number, chunks):
    """A document's chunks; text, memory and key all tell the version."""
    rows = [
        Chunk(f"{document}#{i}", document, "", f"version {number} of {document}, {chunks} in all", "", i, i, 5)
        for i in range(chunks)
    ]
    memories = np.stack([memory_of(chunk) for chunk in rows])
    return rows, [number.to_bytes(8, "big") * 2] * chunks, memories


def memory_of(chunk):
    number = int(chunk.text.split()[1])
    return np.full((M, E), number % 1000 + 1, np.float32) + np.arange(E)


def in_processes(work, count, *arguments):
    """What ``work(number, barrier, *arguments)`` gives in each process."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_run, args=(work, number, barrier, answers, arguments), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join(60)
    failed = [answer for _, answer, well in found if not well]
    assert not failed, failed[0]
    return [answer for _, answer, _ in sorted(found, key=lambda entry: entry[0])]


def _run(work, number, barrier, answers, arguments):
    try:
        answers.put((number, work(number, barrier, *arguments), True))
    except BaseException:
        answers.put((number, traceback.format_exc(), False))


def opened(location, bucket):
    if bucket:
        document_store.Locks = Bucket
    return DocumentStore.open(location)


def write(number, barrier, location, bucket, documents, rounds):
    """Own documents and shared ones, each again and again with another number of chunks, as a server does."""
    store, rng = opened(location, bucket), random.Random(number)
    barrier.wait()
    for turn in range(rounds):
        for i in range(documents):
            for name in (f"single-{number}-{i}", f"shared-{i}"):
                chunks, keys, memories = version(name, 100 * turn + number, rng.randint(1, 4))
                with store.writing():
                    store.replace(chunks, keys, memories)
                store.index_words()
    return documents * rounds * 2


def ask(number, barrier, location, bucket, questions):
    """Each question's ids, texts and memories belong together, and documents are whole."""
    store = opened(location, bucket)
    barrier.wait()
    seen = set()
    for _ in range(questions):
        with store.reading():
            ids, keys = store.index()
            found = [name for name, _ in store.words("version", 50)]
            names = random.sample(ids, min(len(ids), 30)) + found
            texts = store.chunks(names)
            memories = store.memories(names)
            seen.add(store.version)
        assert len(ids) == len(set(ids))
        by_document = {}
        for name, key in zip(ids, keys, strict=True):
            by_document.setdefault(name.partition("#")[0], []).append(key)
        assert all(len(set(versions)) == 1 for versions in by_document.values()), "a document of two versions"
        for chunk, memory in zip(texts, memories, strict=True):
            np.testing.assert_array_equal(memory, memory_of(chunk))
            assert len(by_document[chunk.document]) == int(chunk.text.split()[-3])
    return len(seen)


def write_or_ask(number, barrier, location, bucket, writers, documents, rounds, questions):
    if number < writers:
        return write(number, barrier, location, bucket, documents, rounds)
    return ask(number, barrier, location, bucket, questions)


def check(place, writers, documents, rounds, questions, readers=1):
    location, bucket = place
    done = in_processes(write_or_ask, writers + readers, location, bucket, writers, documents, rounds, questions)
    store = DocumentStore.open(location)
    ids, _ = store.index()
    assert len(ids) == len(set(ids))
    whole = {chunk.document: chunk for chunk in store.chunks(ids)}
    expected = {f"single-{w}-{i}" for w in range(writers) for i in range(documents)}
    assert set(whole) == expected | {f"shared-{i}" for i in range(documents)}
    for name, chunk in whole.items():
        assert sum(chunk_id.startswith(f"{name}#") for chunk_id in ids) == int(chunk.text.split()[-3])
    assert damaged_chunks(store) == []
    return sum(done[:writers]), done[writers:]


def test_writers_and_a_reader_at_once(place):
    _, versions = check(place, writers=2, documents=2, rounds=3, questions=6)
    assert versions[0] >= 1


@pytest.mark.drill
def test_many_writers_and_readers(place):
    began = time.monotonic()
    written, versions = check(place, writers=3, documents=6, rounds=10, questions=200, readers=2)
    print(f"\n{place[1] and 'a bucket' or 'a directory'}: {written} additions, 400 questions of {versions} versions, "
          f"{time.monotonic() - began:.0f} s, 0 failures")  # fmt: skip


def flips(tmp_path, tries, seed=0):
    """One bit of one file of a store is turned: reads agree with what was written, or say that it is damaged.

    Returns:
      how many were said.
    """
    rng, told = random.Random(seed), 0
    store = make(tmp_path / "store")
    expected = {}
    for number in range(12):
        chunks, keys, memories = version(f"d{number}", number, 3)
        store.replace(chunks, keys, memories)
        expected |= {chunk.id: chunk for chunk in chunks}
    store.tidy(now=True)
    files = sorted((tmp_path / "store" / "chunks.lance" / "data").iterdir())
    for _ in range(tries):
        path = rng.choice(files)
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            opened = DocumentStore.open(tmp_path / "store")
            with opened.reading():
                found = {chunk.id: chunk for chunk in opened.chunks(sorted(expected))}
                memories = opened.memories(sorted(expected))
            assert found == expected
            for name, memory in zip(sorted(expected), memories, strict=True):
                np.testing.assert_array_equal(memory, memory_of(expected[name]))
        except ClaraError as error:
            told += 1
            assert "damaged" in str(error) or "cannot be" in str(error) or "has no chunk" in str(error), error
        finally:
            path.write_bytes(whole)
    return told


def test_a_turned_bit_is_not_read_silently(tmp_path):
    assert flips(tmp_path, 40) > 5


@pytest.mark.drill
def test_many_turned_bits(tmp_path):
    print(f"\n{flips(tmp_path, 2000)} of 2000 turned bits were said, none was read silently")
