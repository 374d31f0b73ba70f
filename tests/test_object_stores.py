"""Stores, memories and corpora in a bucket: a real S3-speaking server on loopback, which also fails now and then.

``python -m pytest -n 0 -s -m slow tests/test_object_stores.py`` prints what docs/reliability.md says of it.
"""

import importlib.util
import json
import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from benchmarks import shards as shards_benchmark
from clara_jax.api import Clara
from clara_jax.inference.memory_store import MemoryStore, document_keys
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.publishing import publish
from tests import object_stores
from tests.drills import test_stores
from tests.drills.test_killed_additions import killed_additions
from tests.retrieval.test_shards import checkpoint, fill, rows, run  # noqa: F401
from tests.test_rag_pipeline import pipeline
from tests.tiny import document

pytestmark = pytest.mark.slow
for package in ("moto", "boto3", "flask", "s3fs"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -r requirements-slow.txt", allow_module_level=True)
import s3fs  # noqa: E402

FAILING = 0.1  # of the requests, where the server fails now and then


@pytest.fixture
def server():
    s3fs.S3FileSystem.clear_instance_cache()  # which knows the endpoint of the server before
    with object_stores.s3() as faults:
        yield faults


@pytest.fixture(params=["a server that works", "a server that fails"])
def maybe_failing(request, server):
    server.share = FAILING if request.param == "a server that fails" else 0.0
    yield server
    assert sum(server.failed.values()) > 0 or not server.share


def said(drill, server, began):
    failed = ", ".join(f"{count} requests failed with {status}" for status, count in server.failed.items())
    print(f"\n{drill}: {server.requests:,} requests, {failed}; {time.monotonic() - began:.0f} s")


def test_the_command_fills_and_asks_from_a_corpus_in_a_bucket(
    maybe_failing,
    checkpoint,  # noqa: F811
    mesh,
    tmp_path,
    monkeypatch,
    capsys,
):
    began = time.monotonic()
    lines = "".join(json.dumps({"id": f"d{i}", "text": document(i)}) + "\n" for i in range(40))
    (tmp_path / "corpus.jsonl").write_text(lines)
    (tmp_path / "file.md").write_text(f"# A file\n\n{document(99)}\n")
    for name in ("corpus.jsonl", "file.md"):
        maybe_failing.client.put_object(
            Bucket=object_stores.BUCKET, Key=f"corpus/{name}", Body=(tmp_path / name).read_bytes()
        )
    model = ("--checkpoint", checkpoint, "--precision", "float32", "--encoding", "float32", "--batch-size", 4)
    corpus = ("--corpus", "s3://bucket/corpus/*")
    code, printed = run(monkeypatch, capsys, *model, "--store", "s3://bucket/stores/one", *corpus)
    assert code == 0 and "one: 41 documents, " in printed, printed
    # Where the answer to a commit is lost, it is found done, and its chunks count as there before.
    assert "41 chunks compressed" in printed or maybe_failing.share
    code, printed = run(monkeypatch, capsys, *model, "--store", "s3://bucket/stores/one", *corpus, "--compact")
    assert code == 0 and "41 documents, 0 chunks compressed, 41 unchanged" in printed, printed
    for shard in range(2):
        given = ("--store", "s3://bucket/stores/many", *corpus, "--shard", shard, "--shards", 2)
        code, printed = run(monkeypatch, capsys, *model, *given)
        assert code == 0, printed
    code, printed = run(monkeypatch, capsys, "--store", "s3://bucket/stores/many", "--publish", "--verify")
    assert code == 0 and "published 41 documents" in printed and "41 chunks are as they were written" in printed
    clara = Clara.load(checkpoint, mesh=mesh, batch_size=4, precision="float32")
    local = pipeline(clara, tmp_path / "local")
    fill(local, tmp_path / "corpus.jsonl")
    fill(local, tmp_path / "file.md")
    for place in ("one", "many"):
        rag = pipeline(clara, f"s3://bucket/stores/{place}")
        found, expected = rows(rag.store), rows(local.store)
        assert found.keys() == expected.keys()
        for name, row in expected.items():
            assert (found[name]["text"], found[name]["key"]) == (row["text"], row["key"])
            assert found[name]["path"].startswith("s3://bucket/corpus/")
        np.testing.assert_allclose(rag.store.memories(sorted(found)), local.store.memories(sorted(found)), atol=1e-5)
        for how in ("words", "memory", "both"):
            answer = rag.answer("Where was Ada number 8 born?", k=2, how=how)
            assert len(answer.context.sources) == 2
        assert rag.search("Ada number 8", 1, "words")[0].document == "d8"
    said("a corpus and two stores", maybe_failing, began)


def test_two_writers_and_a_reader_at_once(maybe_failing):
    began = time.monotonic()
    location = "s3://bucket/writers"
    test_stores.make(location)
    written, _ = test_stores.check((location, False), writers=2, documents=2, rounds=3, questions=6)
    said(f"{written} additions by two writers", maybe_failing, began)


def test_a_writer_killed_in_mid_write(maybe_failing):
    began, kills = time.monotonic(), 5
    taken = killed_additions("s3://bucket/killed", False, kills)
    said(f"{kills} kills among {taken} additions", maybe_failing, began)


def test_workers_of_shards_are_killed_and_two_publish_at_once(maybe_failing, tmp_path):
    began = time.monotonic()
    workers = shards_benchmark.Workers(tmp_path, 2, 240, 10.0, 0.3, "s3://bucket/shards")
    workers.kill_workers(4, random.Random(0))
    barrier = threading.Barrier(2)
    ended = []

    def at_once():
        store = DocumentStore.open(workers.location)
        barrier.wait()
        try:
            ended.append(publish(store).documents)
        except Exception as error:  # the other one has published, and removed what this one was to read
            ended.append(error)

    threads = [threading.Thread(target=at_once) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 80 in ended, ended
    shards_benchmark.check(workers.location, 240)
    said("4 kills of two workers, and two who publish at once", maybe_failing, began)


def memories_of(numbers):
    keys = document_keys([np.array([number, 1], np.int32) for number in numbers])
    return keys, np.asarray(numbers, np.float32)[:, None, None] + np.zeros((1, 2, 8), np.float32)


def append_on_and_on(location, first):
    store = MemoryStore(location, "f" * 64, 2, 8, "float32")
    for start in range(first, first + 1_000_000, 300):  # more than a block
        with store.writing():
            numbers = [number for number in range(start, start + 300)]
            keys, memories = memories_of(numbers)
            new = ~store.has(keys)
            store.append(keys[new], memories[new])


def test_memories_for_training_and_a_killed_writer(maybe_failing):
    began = time.monotonic()
    location = "s3://bucket/memories"
    store = MemoryStore(location, "f" * 64, 2, 8, "float32")
    context, rng = multiprocessing.get_context("spawn"), random.Random(0)
    for kill in range(3):
        process = context.Process(target=append_on_and_on, args=(location, 300 * kill), daemon=True)
        process.start()
        before, waited = len(store), time.monotonic()
        while len(store) == before and time.monotonic() < waited + 120:  # readers beside the writer
            store = MemoryStore(location, "f" * 64, 2, 8, "float32")
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = MemoryStore(location, "f" * 64, 2, 8, "float32")
        assert len(store) > before
        # Every key that is there has its memory.
        keys, memories = memories_of(range(len(store)))
        there = store.has(keys)
        np.testing.assert_array_equal(store.read(keys[there]), memories[there])
        assert there.sum() == len(store)
    said(f"3 kills of a writer of {len(store)} memories", maybe_failing, began)
