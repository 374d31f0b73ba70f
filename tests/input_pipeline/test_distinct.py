"""Distinct documents: the same however examples are kept, and room for those of every batch."""

import dataclasses

import jax
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.input_pipeline.buckets import shape_ladder
from clara_jax.input_pipeline.distinct import document_numbers, most_distinct, planned_counts
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.mixture import ConcatExamples
from clara_jax.input_pipeline.records import parse_record
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.token_cache import open_or_make
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import tiny_tokenizer

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=32, memory_tokens=4, max_length=400)
ENCODING = Encoding("end_to_end", 2, 3)


def make_records(count):
    """Neighbours share documents; lengths differ, so that there are several shapes."""
    texts = ["word " * (number % 7) + f"n{number}" for number in range(count)]
    return [
        parse_record(
            {
                "question": f"Who is {number}?",
                "docs": [texts[(number + shift) % count] for shift in range(1 + number % 3)],
                "answer": "it",
                "pos_index": [0],
            },
            "instruct",
            f"f.jsonl:{number + 1}",
        )
        for number in range(count)
    ]


def texts_of(example):
    return [ids.tobytes() for ids in example.documents]


def test_numbers_of_examples_in_memory_on_disk_and_joined(tmp_path):
    records = make_records(20)
    examples = encode_records(records, TOKENIZER, ENCODING)
    cache = open_or_make(tmp_path, records, "abc", TOKENIZER, ENCODING)
    for kept in (examples, cache, ConcatExamples([examples, cache])):
        numbers = document_numbers(kept)
        assert len(numbers.ends) == len(kept) and numbers.ends[-1] == len(numbers.flat)
        for rows in ([0], [3, 4, 5], [19, 0, 7], list(range(20))):
            expected = len({text for row in rows for text in texts_of(kept[row])})
            assert numbers.distinct(np.array(rows)) == expected
    joined = document_numbers(ConcatExamples([examples, cache]))
    assert joined.distinct(np.array([3, 23])) == 2 * len(examples[3].documents)  # of different sets: not compared
    assert most_distinct([examples[:1], examples[2:5]]) == len({t for e in examples[2:5] for t in texts_of(e)})
    assert most_distinct([]) == 1


@pytest.mark.parametrize("multiple", [1, 4])
def test_planned_counts_are_the_most_of_each_shape(multiple):
    examples = encode_records(make_records(40), TOKENIZER, ENCODING)
    sizes = sizes_of(examples)
    plan = BatchPlan(sizes, shape_ladder(sizes, TOKENIZER, 3, multiple=4), 8, 23, seed=1)
    counts = planned_counts(plan, document_numbers(examples), multiple)
    found = {}
    for step in range(plan.steps):
        rows, shapes = [examples[row] for row in plan.rows(step)], plan.shapes(step)
        found.setdefault(shapes, []).append(len({text for example in rows for text in texts_of(example)}))
        collate(rows, shapes, TOKENIZER, distinct=counts[shapes])
    assert len(found) > 1 and counts == {
        shapes: -(-max(numbers) // multiple) * multiple for shapes, numbers in found.items()
    }


def test_a_batch_of_distinct_documents_holds_what_the_plain_one_holds():
    examples = encode_records(make_records(6), TOKENIZER, ENCODING)
    shapes = plan_shapes(examples, TOKENIZER)
    plain, once = collate(examples, shapes, TOKENIZER, 8), collate(examples, shapes, TOKENIZER, 8, distinct=7)
    valid = plain.document_valid
    texts, index = once.documents.texts, once.documents.index
    assert texts.ids.shape == (7, shapes.encoder_width + TOKENIZER.memory_tokens)
    assert index.shape == valid.shape and index.dtype == np.int32
    for name, placed in vars(plain.documents).items():
        np.testing.assert_array_equal(getattr(texts, name)[index][valid], placed[valid], err_msg=name)
    assert (index[~valid] == 0).all() and not texts.segment_ids[6].any()  # six documents, seven places
    others = (dataclasses.replace(batch, documents=None) for batch in (plain, once))
    jax.tree.map(np.testing.assert_array_equal, *others)
    assert once.tokens < plain.tokens
    with pytest.raises(ClaraError, match="6 distinct documents do not fit into a batch of 5"):
        collate(examples, shapes, TOKENIZER, distinct=5)
