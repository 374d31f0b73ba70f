"""SIGKILL at random moments of additions to a store: none that was taken is lost, none is doubled or cut.

The fast test kills once; the drill twenty times:
``python -m pytest -n 0 -m drill tests/drills/test_killed_additions.py``.
"""

import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from clara_jax.retrieval import document_store
from clara_jax.retrieval.verifying import damaged_chunks
from tests.drills.test_stores import make, memory_of, opened, version
from tests.locations import ROOT

DOCUMENTS = 12
# Adds from a number on, as many as may be, and says each one that the store has taken.
ADD_ON_AND_ON = """
import itertools, sys
from tests.drills.test_killed_additions import add
from tests.drills.test_stores import opened
location, bucket, first = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
store = opened(location, bucket)
print("opened", flush=True)
for number in itertools.count(first):
    add(store, number)
    print(number, flush=True)
"""


def add(store, number):
    """The next version of one of the documents, which has another number of chunks, as POST /v1/documents does."""
    store.replace(*version(f"d{number % DOCUMENTS}", number, number % 4 + 1))
    store.index_words()


def contents(store):
    """Document -> the number of its version; each is whole, once there, and has its memories."""
    ids, _ = store.index()
    assert len(ids) == len(set(ids))
    found = {}
    for chunk, memory in zip(store.chunks(ids), store.memories(ids), strict=True):
        np.testing.assert_array_equal(memory, memory_of(chunk))
        number, chunks = int(chunk.text.split()[1]), int(chunk.text.split()[-3])
        assert found.setdefault(chunk.document, number) == number and chunks == number % 4 + 1
        assert sum(name.startswith(f"{chunk.document}#") for name in ids) == chunks
    assert damaged_chunks(store) == []
    return found


def killed_additions(location, bucket, kills):
    """Returns how many additions were taken."""
    make(location)
    rng, taken = random.Random(kills), -1
    for _ in range(kills):
        command = [sys.executable, "-c", ADD_ON_AND_ON, location, str(bucket), str(taken + 1)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "opened\n", process.stderr.read()
            try:
                process.wait(rng.uniform(0, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
            # Not by communicate: it leaves out what was buffered when "opened" was read.
            told, errors = process.stdout.read(), process.stderr.read()
        assert process.returncode == -signal.SIGKILL and not errors, errors
        said = int((told.split() or [taken])[-1])
        found = contents(opened(location, bucket))
        # All that it said, and perhaps one that it had no time to say.
        for now in (said, said + 1):
            expected = {f"d{number % DOCUMENTS}": number for number in range(max(0, now + 1 - DOCUMENTS), now + 1)}
            if found == expected:
                break
        else:
            raise AssertionError((said, found))
        taken = now
    store = opened(location, bucket)
    add(store, taken + 1)
    ids, keys = store.index()
    alone = make(f"{location}-alone")
    for number in range(taken + 2):
        add(alone, number)
    assert dict(zip(ids, keys, strict=True)) == dict(zip(*alone.index(), strict=True))
    assert contents(store) == contents(alone)
    assert {name for name, _ in store.words("version", 100)} == {name for name, _ in alone.words("version", 100)}
    return taken + 2


def place_of(tmp_path, where):
    return (f"file://{tmp_path}/store", True) if where == "a bucket" else (str(tmp_path / "store"), False)


def test_killed_additions(tmp_path):
    assert killed_additions(*place_of(tmp_path, "a directory"), kills=1) > 0


@pytest.mark.drill
@pytest.mark.parametrize("where", ["a directory", "a bucket"])
def test_additions_killed_twenty_times(tmp_path, where, monkeypatch):
    monkeypatch.setattr(document_store, "Locks", document_store.Locks)  # as it is, behind what `opened` changes
    taken = killed_additions(*place_of(tmp_path, where), kills=20)
    print(f"\n{where}: 20 kills among {taken} additions: none was lost, doubled or cut")
