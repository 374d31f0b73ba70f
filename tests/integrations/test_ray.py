"""A Ray cluster of several processes on this machine compresses a corpus, and a killed worker costs nothing."""

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from clara_jax.api import Clara
from clara_jax.retrieval.document_store import DocumentStore
from tests.retrieval.test_shards import checkpoint, fill, rows, run  # noqa: F401
from tests.test_rag_pipeline import pipeline
from tests.tiny import document

pytestmark = pytest.mark.slow
if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install -r requirements-slow.txt", allow_module_level=True)


def workers_of(store):
    """The processes of Ray's that have files of the store's shards open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
            if any(f"{store}/.staged" in link for link in opened) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for Ray's processes in /proc")
def test_a_cluster_of_processes_with_one_killed(checkpoint, mesh, tmp_path, monkeypatch, capsys):  # noqa: F811
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "many"
    lines = [{"id": f"d{i}", "text": "\n\n".join(document(i + j) for j in range(9))} for i in range(600)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    killed = []

    def kill():
        while not killed and not (store / "done").exists():
            for process in workers_of(store):
                time.sleep(0.5)
                try:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    model = ("--checkpoint", checkpoint, "--precision", "float32", "--batch-size", 4)
    given = ("--store", store, "--corpus", corpus, "--ray", "local", "--shards", 4, "--resources", "CPU=0.5")
    code, said = run(monkeypatch, capsys, *model, *given)
    assert code == 0 and "published 600 documents" in said and "corpus.jsonl:601: column 1: not JSON" in said, said
    assert killed
    one = pipeline(Clara.load(checkpoint, mesh=mesh, batch_size=4, precision="float32"), tmp_path / "one")
    fill(one, corpus)
    found, expected = rows(DocumentStore.open(store)), rows(one.store)
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        for column in row.keys() - {"memory", "memory_checksum"}:  # its last bits depend on the batch
            assert found[name][column] == row[column]
    # An error of a worker is one line; so is a cluster that has too little.
    code, said = run(monkeypatch, capsys, *model, *given, "--strict")
    assert code == 2 and "corpus.jsonl:601: column 1: not JSON" in said and "Traceback" not in said
    code, said = run(monkeypatch, capsys, *model, *given[:-2], "--resources", "TPU=4")
    assert code == 2 and "no machine of the cluster has TPU=4" in said
    run(monkeypatch, capsys, "--store", store, "--discard")
