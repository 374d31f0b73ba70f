"""A store that grows by single additions, for long: its files and this process's memory do not grow with their number.

The fast test makes some; the drill many: ``python -m pytest -n 0 -m drill tests/drills/test_growth.py``.
"""

import os

import numpy as np
import pytest

from clara_jax.retrieval import table
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.table import COMMITS
from clara_jax.text.documents import Chunk

M, E = 4, 64


def measured(place):
    files = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
    return len(files), sum(map(os.path.getsize, files))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def add(store, number, documents):
    """A version of one of some documents, as POST /v1/documents does; then a question."""
    name = f"d{number % documents}"
    chunk = Chunk(f"{name}#0", name, "", f"Note {number} of a town.", "", 0, 9, 9)
    store.replace([chunk], [number.to_bytes(16, "big")], np.full((1, M, E), number % 9, np.float32))
    store.index_words()
    assert store.words(f"note {number}", 1)[0][0] == f"{name}#0" and len(store.memories([f"{name}#0"])) == 1


@pytest.mark.parametrize("reader", [False, True])
def test_a_store_is_compacted_as_it_grows(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(table, "_TRIES", 2)
    place = tmp_path / "store"
    store = DocumentStore.open_or_make(place, "f" * 64, "float16", M, E)
    other = DocumentStore.open(place)
    for number in range(3 * COMMITS):
        add(store, number, 24)
        if reader:  # a version that is read stays until it is not
            with other.reading():
                before = other.index()
                if number % COMMITS == 5:
                    store.tidy(now=True)
                    assert other.index() == before and len(other.chunks(before[0])) == len(before[0])
    store.tidy(now=True)
    files, size = measured(place)
    assert files < 20 and size < 20 * 24 * M * E * 2
    assert len(other) == len(store) == 24 and len(other.memories(other.index()[0])) == 24


@pytest.mark.drill
def test_a_thousand_additions(tmp_path):
    place, most, kept = tmp_path / "store", 0, []
    store = DocumentStore.open_or_make(place, "f" * 64, "float16", M, E)
    for number in range(1000):
        add(store, number, 50)
        most = max(most, measured(place)[0])
        if number % 200 == 199:
            kept.append(resident())
    files, size = measured(place)
    print(f"\n1000 additions: at most {most} files, at the end {files} of {size / 1e6:.2f} MB; memory after each 200: "
          + ", ".join(f"{one / 2**20:.0f}" for one in kept) + " MiB")  # fmt: skip
    assert most < 200 and kept[-1] < kept[1] + (32 << 20)
