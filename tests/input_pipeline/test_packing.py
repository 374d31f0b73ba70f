"""Rows that hold several examples: none is lost, none is split, no room is exceeded."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.packing import RowCapacity, collate_packed, needs, pack, plan_row, row_count
from clara_jax.input_pipeline.records import parse_record
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer
from tests.data import tiny_tokenizer
from tests.input_pipeline.test_buckets import make_sizes

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=60, memory_tokens=4, max_length=400)
M = 4


@given(st.integers(1, 150), st.integers(70, 2000), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_example_stands_in_one_row_and_no_row_is_too_full(count, length, seed):
    sizes = make_sizes(count, seed, ranking=False)
    row = plan_row(sizes, M, length)
    rows = pack(sizes, M, row)
    assert sorted(place for places in rows for place in places) == list(range(count))
    room = np.array(dataclasses.astuple(row))
    for places in rows:
        assert places and np.all(needs(sizes, M)[places].sum(axis=0) <= room)
    assert rows == pack(sizes, M, row)


def test_rows_are_full():
    sizes = make_sizes(400, ranking=False)
    row = plan_row(sizes, M, 1024)
    rows = pack(sizes, M, row)
    assert len(rows) <= 1.15 * needs(sizes, M)[:, 1].sum() / row.prompts + 1


@pytest.mark.parametrize(
    "rows,expected,multiple,found", [(60, 60, 1, 64), (57, 60, 4, 64), (3, 3.2, 4, 4), (1, 1, 1, 1)]
)
def test_counts_of_rows_are_few(rows, expected, multiple, found):
    assert row_count(rows, expected, multiple) == found


def test_too_little_room():
    sizes = make_sizes(20, ranking=False)
    with pytest.raises(ClaraError, match="pack: 40 tokens do not hold the longest document"):
        plan_row(sizes, M, 40)
    with pytest.raises(ClaraError, match="takes .* of"):
        pack(sizes, M, RowCapacity(2000, 10, 9, 8))


def test_a_packed_batch_holds_its_examples():
    records = [
        parse_record(
            {"data_type": "qa", "question": ["Who?", "Where?"], "answers": ["Ada", "in Rome"], "docs": ["one " * n]},
            "scp",
            f"f.jsonl:{n}",
        )
        for n in range(1, 8)
    ]
    examples = encode_records(records, TOKENIZER, Encoding("scp", 1))
    row = plan_row(sizes_of(examples), M, 80)
    rows = pack(sizes_of(examples), M, row)
    batch = collate_packed([[examples[i] for i in places] for places in rows], len(rows) + 1, row, TOKENIZER)
    assert 1 < len(rows) < len(examples) and batch.document_ids.shape == (len(rows) + 1, 1, row.documents)
    for b, places in enumerate(rows):
        assert batch.example_ids[b].tolist() == places + [-1] * (row.examples - len(places))
        for s, place in enumerate(places):
            example = examples[place]
            ids = batch.document_ids[b, 0][batch.document_mask[b, 0] == s + 1]
            np.testing.assert_array_equal(ids, [*example.documents[0], *TOKENIZER.memory_ids])
            np.testing.assert_array_equal(batch.document_ids[b, 0][batch.memory_at[b, s]], TOKENIZER.memory_ids)
            positions = batch.prompt_mask[b] == s + 1
            np.testing.assert_array_equal(batch.prompt_ids[b][positions], example.prompt_ids)
            index = batch.memory_index[b][positions]
            np.testing.assert_array_equal(index[index >= 0], s * M + np.arange(M))
            learned = positions[batch.targets_at[b]] & (batch.labels[b] != IGNORED)
            np.testing.assert_array_equal(batch.labels[b][learned], example.labels[example.labels != IGNORED])
            np.testing.assert_array_equal(batch.prompt_ids[b][batch.targets_at[b]][learned], batch.labels[b][learned])
    assert not batch.document_mask[-1].any() and not batch.document_valid[-1].any()
    assert (batch.labels[-1] == IGNORED).all()
