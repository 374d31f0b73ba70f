"""Batches of several compress rates: the same examples with fewer memory tokens, as if they had been encoded so."""

import numpy as np
import pytest

from clara_jax.input_pipeline.buckets import shape_ladder
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.rates import make_rate, rate_of, with_fewer
from clara_jax.input_pipeline.records import parse_record
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests import tiny

LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer():
    return ClaraTokenizer(tiny.tokenizer(), LENGTH, 6, different_mem_tokens=False)


def encoded(tokenizer, stage="instruct"):
    records = []
    for i in range(12):
        documents = [tiny.document(i + j) for j in range(1 + i % 3)]
        fields = {"question": "Where?", "docs": documents, "answer": "there " * (i + 1), "pos_index": [0]}
        records.append(parse_record(fields, stage, f"questions.jsonl:{i + 1}"))
    return encode_records(records, tokenizer, Encoding(stage, 3))


@pytest.mark.parametrize("fewer", [1, 2, 3])
def test_fewer_memory_tokens_are_those_of_the_tokenizer_that_has_so_many(tokenizer, fewer):
    for found, wanted in zip(
        [with_fewer(example, 6, fewer) for example in encoded(tokenizer)],
        encoded(tokenizer.with_memories(LENGTH, fewer)),
        strict=True,
    ):
        for name in ("prompt_ids", "memory_index", "labels"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def test_each_rate_comes_equally_often_in_an_order_of_its_own():
    drawn = [rate_of(step, 3, seed=5) for step in range(300)]
    assert np.bincount(drawn).tolist() == [100, 100, 100]
    assert len({tuple(drawn[i : i + 3]) for i in range(0, 300, 3)}) == 6
    assert drawn == [rate_of(step, 3, seed=5) for step in range(300)]
    assert drawn != [rate_of(step, 3, seed=6) for step in range(300)]


@pytest.mark.parametrize("buckets", [1, 3])
def test_batches_have_the_shapes_and_tokens_of_their_rate(tokenizer, buckets):
    examples = encoded(tokenizer)
    sizes = sizes_of(examples)
    ladder = shape_ladder(sizes, tokenizer, buckets)
    few = tokenizer.with_memories(LENGTH, 2)
    rate = make_rate(sizes, ladder, tokenizer, few)
    loader = BatchLoader(BatchPlan(sizes, ladder, 2, 12, seed=1), examples, sizes, tokenizer, further_rates=[rate])
    counts = {0: 6, 1: 2}
    assert {loader.rate(step) for step in range(12)} == {0, 1}
    for step in range(12):
        batch, memory_tokens = loader.batch(step), counts[loader.rate(step)]
        documents = batch.document_valid.sum(axis=1)
        assert (batch.prompt.memory_index.max(axis=1) + 1).tolist() == (documents * memory_tokens).tolist()
        memory = np.isin(batch.documents.ids, tokenizer.memory_ids) & (batch.documents.segment_ids == 1)
        assert (memory.sum(axis=2) == batch.document_valid * memory_tokens).all()
        assert np.array_equal(memory[:, :, -memory_tokens:].any(axis=2), batch.document_valid)
        assert batch.prompt.ids.shape[1] <= ladder[loader.plan.level(step)].prompt_length
        if memory_tokens == 2:
            assert batch.prompt.ids.shape[1] < ladder[-1].prompt_length
