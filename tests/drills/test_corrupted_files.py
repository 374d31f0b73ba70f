"""Our files, damaged at random: what is read is what was written, or an error says so; nothing else comes of it.

A bit is turned, the end is cut off, 512 bytes are zeros, or a file is gone. The fast tests do it fifty times to a
checkpoint (`tests/checkpoints/test_run.py`), and to a store (`test_stores.py`, which has another drill):
``python -m pytest -n 0 -s -m drill tests/drills/test_corrupted_files.py``.
"""

import pickle
import random

import numpy as np
import pytest

from clara_jax.checkpoints import exporting, opening
from clara_jax.checkpoints.retention import checkpoint_directory
from clara_jax.checkpoints.run import save_checkpoint
from clara_jax.data.builders import RecordSource, build
from clara_jax.data.synthetic import records
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.inference.memory_store import MemoryStore, document_keys
from clara_jax.input_pipeline.encoding import Encoding
from clara_jax.input_pipeline.token_cache import open_or_make
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.parameters import flatten
from tests import exports, tiny
from tests.checkpoints.test_run import corrupted_checkpoints, one_file_damaged, tree
from tests.data import tiny_tokenizer
from tests.data.builders.files import questions, write

pytestmark = pytest.mark.drill


def tried(folder, count, read, expected, equal=lambda one, other: one == other):
    """How often it was said; fails where something else than what was written is read."""
    rng, told = random.Random(count), 0
    for _ in range(count):
        with one_file_damaged(folder, rng) as what:
            try:
                assert equal(read(), expected), what
            except ClaraError as error:
                told += 1
                assert str(folder.parent) in str(error) and "\n" not in str(error), (what, error)
            except Exception as error:
                raise AssertionError(what) from error
    assert equal(read(), expected)
    print(f"\n{count} damages: {told} were said, the others change nothing that is read")
    return told


def test_checkpoints(tmp_path, capsys):
    saved = checkpoint_directory(tmp_path, 1, "scp", 7)
    save_checkpoint(saved, tree(), {"stage": "scp"}, lambda path: (path / "tokenizer.json").write_text("{}"))
    corrupted_checkpoints(tmp_path, saved, capsys, 1000)


def test_data_sets(tmp_path):
    file = write(tmp_path / "x.jsonl", questions(200))
    folder = build("instruct", {"train": [file]}, tmp_path / "data", shard_bytes=2**14).directory

    def read():
        source = RecordSource(folder, "train")
        source.verify()
        return [*source]

    assert tried(folder, 1000, read, read()) > 300


def test_tokens(tmp_path):
    examples = records(SyntheticConfig(records=dict(train=200, eval=1)), "retrieval", "train")
    encoding, tokenizer = Encoding("retrieval", 2, 3, seed=4), ClaraTokenizer(tiny_tokenizer(), 96, 4)

    def read():
        cache = open_or_make(tmp_path / "tokens", examples, "f", tokenizer, encoding)
        return pickle.dumps([[*cache], [*cache.documents()]])

    assert tried(tmp_path / "tokens", 1000, read, read()) > 300


def test_stores_of_memories_for_training(tmp_path):
    documents = [np.array([i, i + 1], np.int32) for i in range(40)]
    memories = np.random.default_rng(0).normal(size=(40, 3, 8)).astype(np.float32)
    keys = document_keys(documents)
    MemoryStore(tmp_path / "store", "made by one", 3, 8, "float32").append(keys, memories)

    def read():
        return MemoryStore(tmp_path / "store", "made by one", 3, 8, "float32").read(keys)

    assert tried(tmp_path / "store", 1000, read, memories, np.array_equal) > 300


def test_compact_copies(tmp_path, mesh):
    bundle = exports.bundle(tiny.write_base(tmp_path / "base"))
    exporting.export_compact(bundle, tmp_path / "m")

    def read():
        return {name: np.asarray(leaf) for name, leaf in flatten(opening.load(tmp_path / "m", mesh).params).items()}

    def equal(one, other):
        return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)

    assert tried(tmp_path / "m", 200, read, read(), equal) > 100
