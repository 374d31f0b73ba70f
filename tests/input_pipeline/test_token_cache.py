"""Tokens on disk are the tokens: equal to those in memory, made once, never half-made."""

import dataclasses
import pickle

import numpy as np
import pytest

from clara_jax.data.synthetic import records
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.document_tokenizer import SLICE
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.token_cache import TokenCache, cache_key, open_or_make, slices
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import tiny_tokenizer

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=96, memory_tokens=4, max_length=400)
WORLD = SyntheticConfig(records=dict(train=SLICE + 70, eval=1, candidates=3, paraphrase_share=0.3))


def encoding(stage, documents="memory"):
    return Encoding(stage, 2, 3, seed=4, documents=documents)


WAYS = [(stage, "memory") for stage in ("scp", "instruct", "end_to_end", "retrieval")] + [("end_to_end", "text")]


@pytest.mark.parametrize("stage, documents", WAYS)
def test_a_cache_holds_what_is_encoded_in_memory(stage, documents, tmp_path):
    train = records(WORLD, stage, "train")
    seen = []
    cache = open_or_make(tmp_path, train, "f", TOKENIZER, encoding(stage, documents), seen.append)
    expected = encode_records(train, TOKENIZER, encoding(stage, documents))
    assert bool(list(cache.documents())) == (documents == "memory")
    assert len(cache) == len(expected) == len(train) and seen == [SLICE, SLICE + 70]
    np.testing.assert_array_equal(cache.sizes, sizes_of(expected))
    for reader in (cache, pickle.loads(pickle.dumps(cache))):
        for index in (0, 1, SLICE - 1, SLICE, len(train) - 1):
            for field in dataclasses.fields(expected[index]):
                mine, yours = getattr(reader[index], field.name), getattr(expected[index], field.name)
                if field.name == "documents":
                    assert len(mine) == len(yours)
                    for a, b in zip(mine, yours, strict=True):
                        np.testing.assert_array_equal(a, b)
                else:
                    np.testing.assert_array_equal(mine, yours)
    with pytest.raises(IndexError):
        cache[len(train)]


def test_it_is_made_once_and_anew_for_anything_else(tmp_path):
    train = records(WORLD, "scp", "train")[:5]
    open_or_make(tmp_path, train, "f", TOKENIZER, encoding("scp"))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    unread = map(pytest.fail, ["the records are read again"])
    assert len(open_or_make(tmp_path, unread, "f", TOKENIZER, encoding("scp"))) == 5
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    longer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=96, memory_tokens=4, max_length=401)
    keys = {
        cache_key(*facts)
        for facts in (
            ("f", TOKENIZER, encoding("scp")),
            ("g", TOKENIZER, encoding("scp")),
            ("f", longer, encoding("scp")),
            ("f", TOKENIZER, Encoding("scp", 2, 3, seed=5)),
            ("f", TOKENIZER, encoding("scp", "text")),
        )
    }
    assert len(keys) == 5


def test_a_mistake_leaves_nothing(tmp_path):
    train = records(WORLD, "scp", "train")[:5]

    def broken():
        yield from train
        raise ClaraError("f.jsonl:6: wrong")

    with pytest.raises(ClaraError, match="f.jsonl:6"):
        open_or_make(tmp_path, broken(), "f", TOKENIZER, encoding("scp"))
    with pytest.raises(ClaraError, match="no records"):
        open_or_make(tmp_path, [], "f", TOKENIZER, encoding("scp"))
    assert not list(tmp_path.iterdir())
    assert isinstance(open_or_make(tmp_path, train, "f", TOKENIZER, encoding("scp")), TokenCache)


def test_what_a_disk_changes_is_seen(tmp_path):
    """Every file of a cache, with a bit turned, its end cut off, or gone; made again once the directory is deleted."""
    train = records(WORLD, "retrieval", "train")[:9]
    cache = open_or_make(tmp_path, train, "f", TOKENIZER, encoding("retrieval"))
    for file in sorted(cache.directory.iterdir()):
        content = file.read_bytes()
        turned = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:] if content else b""
        for damaged in (turned, content[:-3], None):
            if damaged == content:
                continue
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(ClaraError, match=f"{cache.directory}.*; delete the directory, and its tokens are made"):
                # Not made anew behind the reader's back.
                again = open_or_make(tmp_path, map(pytest.fail, ["read"]), "f", TOKENIZER, encoding("retrieval"))
                list(again.documents()), list(again)  # what is opened without a word is read
            file.write_bytes(content)
    assert len(list(open_or_make(tmp_path, train, "f", TOKENIZER, encoding("retrieval")))) == 9


def test_slices_take_many_at_a_time():
    class Source(list):
        asked = []

        def __getitems__(self, numbers):
            self.asked.append(len(numbers))
            return [self[number] for number in numbers]

    source = Source(range(SLICE + 3))
    assert list(slices(source)) == list(source) == list(slices(list(source))) and source.asked == [SLICE, 3]
