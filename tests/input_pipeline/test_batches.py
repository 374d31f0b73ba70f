"""Batches: what stands where, and which example comes when."""

import json
import warnings

import jax
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.input_pipeline.buckets import Shapes, text_width
from clara_jax.input_pipeline.encoding import Encoding, encode_records
from clara_jax.input_pipeline.records import parse_record, read_records
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import tiny_tokenizer

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=32, memory_tokens=4, max_length=400)
M = 4


def question(documents, positives=(), number=0, **fields):
    fields = {"question": f"Who is {number}?", "docs": documents, "answer": f"It is {'the ' * number}.", **fields}
    return parse_record(fields | {"pos_index": list(positives)}, "instruct", f"f.jsonl:{number + 1}")


RECORDS = [
    question(["one", "two", "the three"], [1], 0),
    question(["four"], [], 1),
    question(["two", "five"], [0, 1], 5),
]


def make(stage, k=2, candidates=3, records=RECORDS, progress=None, **options):
    return encode_records(records, TOKENIZER, Encoding(stage, k, candidates, **options), progress)


def text(ids, segment_ids):
    return TOKENIZER.decode(ids[segment_ids == 1], special=True)


def test_end_to_end_batch():
    examples = make("end_to_end")
    shapes = plan_shapes(examples, TOKENIZER)
    batch = collate(examples, shapes, TOKENIZER, batch_size=4)
    memory = "<MEM0><MEM1><MEM2><MEM3>"
    assert batch.documents.ids.shape == (4, 3, shapes.encoder_width + M)
    np.testing.assert_array_equal(batch.document_valid, [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    for row, record in enumerate(RECORDS):
        for d, document in enumerate(record.documents):
            expected = f"<ENC><|im_start|>{document}<|im_end|>{memory}"
            assert text(batch.documents.ids[row, d], batch.documents.segment_ids[row, d]) == expected
        expected = f"<ENC><|im_start|>{record.questions[0]}<|im_end|>{memory}"
        assert text(batch.query.ids[row], batch.query.segment_ids[row]) == expected
        prompt = text(batch.prompt.ids[row], batch.prompt.segment_ids[row])
        assert prompt.count("<SEP>") == min(2, len(record.documents))
        assert prompt.endswith(f"assistant\n{record.answers[0]}<|im_end|>\n")
        labels = batch.prompt.labels[row]
        assert TOKENIZER.decode(labels[labels != -100], special=True) == f"{record.answers[0]}<|im_end|>\n"
        aligned = batch.prompt.ids[row, -len(labels) :]
        np.testing.assert_array_equal(labels[labels != -100], aligned[labels != -100])
        index = batch.prompt.memory_index[row]
        np.testing.assert_array_equal(index[index >= 0], np.arange(M * min(2, len(record.documents))))
        assert np.isin(batch.prompt.ids[row][index >= 0], TOKENIZER.memory_ids).all()
        assert not (index[batch.prompt.segment_ids[row] == 0] >= 0).any()
    np.testing.assert_array_equal(batch.positives, [[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.example_ids, [[0], [1], [2], [-1]])
    # An absent document, and all of a row that only fills the batch, attends to nothing and is learned by nobody.
    assert not batch.documents.segment_ids[~batch.document_valid].any()
    assert not batch.prompt.segment_ids[3].any() and not batch.query.segment_ids[3].any()
    assert (batch.prompt.labels[3] == -100).all() and (batch.prompt.memory_index[3] == -1).all()
    # Padding is on the left: once a token is attended, all behind it are.
    for rows in (batch.documents, batch.query, batch.prompt):
        assert set(np.unique(rows.segment_ids)) == {0, 1} and (np.diff(rows.segment_ids, axis=-1) >= 0).all()
    for rows in (batch.documents, batch.query):
        ends = np.take_along_axis(rows.ids, rows.memory_positions[..., 0, :], axis=-1)
        np.testing.assert_array_equal(ends, np.broadcast_to(TOKENIZER.memory_ids, ends.shape))
    at = np.take_along_axis(batch.prompt.ids, batch.prompt.label_positions, axis=1)
    np.testing.assert_array_equal(at[batch.prompt.labels != -100], batch.prompt.labels[batch.prompt.labels != -100])
    assert {leaf.dtype for leaf in (batch.document_valid, batch.positives)} == {np.dtype(bool)}
    integers = jax.tree.leaves((batch.documents, batch.query, batch.prompt, batch.example_ids))
    assert {leaf.dtype for leaf in integers} == {np.dtype(np.int32)}


def test_batch_is_a_tree_of_arrays():
    leaves = jax.tree.leaves(collate(make("end_to_end"), plan_shapes(make("end_to_end"), TOKENIZER), TOKENIZER))
    assert len(leaves) == 14 and all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_instruct_and_scp_batches_have_no_query():
    examples = make("instruct")
    batch = collate(examples, plan_shapes(examples, TOKENIZER), TOKENIZER)
    assert batch.query is batch.positives is None
    np.testing.assert_array_equal(batch.document_valid, [[1, 1], [1, 0], [1, 1]])
    scp = [
        parse_record({"data_type": "qa", "question": ["A?", "B?"], "answers": ["a", "b"], "docs": ["d"]}, "scp", "f:1"),
        parse_record({"data_type": "paraphrase", "answers": ["again"], "docs": ["e"]}, "scp", "f:2"),
    ]
    examples = make("scp", k=5, records=scp)
    batch = collate(examples, plan_shapes(examples, TOKENIZER), TOKENIZER)
    assert batch.document_valid.shape == (2, 1)
    assert (np.sum(batch.prompt.memory_index >= 0, axis=1) == M).all()
    assert "Question: A?\nAnswer: a\nQuestion: B?\nAnswer: b<|im_end|>" in text(
        batch.prompt.ids[0], batch.prompt.segment_ids[0]
    )


def test_too_many_candidates():
    record = question([f"d{i}" for i in range(6)], [2, 5])

    def kept(**options):
        (example,) = make("end_to_end", candidates=3, records=[record], **options)
        texts = [TOKENIZER.decode(ids) for ids in example.documents]
        return texts, example.positives

    assert kept() == (["d0", "d2", "d5"], (1, 2))  # the positives, then the rest, all in their order
    assert kept(keep_positives=False) == (["d0", "d1", "d2"], (2,))
    (example,) = make("end_to_end", candidates=None, records=[record])
    assert len(example.documents) == 6 and example.positives == (2, 5)
    (example,) = make("instruct", k=1, records=[record])
    assert [TOKENIZER.decode(ids) for ids in example.documents] == ["d2"]


def test_documents_as_text():
    """Texts in the prompts, and nothing else in the batch."""
    documents = ["d" * 40, "two", "the three", "four"]
    records = [question(documents, [2], 0), question(["five"], [], 1)]
    with pytest.warns(UserWarning, match="1 of 4 different documents are longer than doc_max_length = 32"):
        examples = make("end_to_end", k=3, candidates=4, records=records, documents="text")
    shapes = plan_shapes(examples, TOKENIZER)
    batch = collate(examples, shapes, TOKENIZER, batch_size=3)
    assert (shapes.documents, shapes.encoder_width, shapes.query_width) == (0, 0, 0)
    assert batch.documents is batch.query is batch.positives is None
    assert batch.document_valid.shape == (3, 0) and batch.document_valid.dtype == bool
    assert (batch.prompt.memory_index == -1).all() and batch.tokens == sum(
        len(example.prompt_ids) for example in examples
    )
    for row, (record, texts) in enumerate(zip(records, [["d" * 33, "two", "the three"], ["five"]], strict=True)):
        shown = text(batch.prompt.ids[row], batch.prompt.segment_ids[row])
        assert f"Background:\n{chr(10).join(texts)}\n\nQuestion:{record.questions[0]}<|im_end|>" in shown
        assert shown.endswith(f"assistant\n{record.answers[0]}<|im_end|>\n") and "<MEM" not in shown

    def background(stage, records, **options):
        (example,) = make(stage, records=records, documents="text", **options)
        return TOKENIZER.decode(example.prompt_ids).partition("Background:\n")[2].partition("\n\nQuestion:")[0]

    # Positives first, whatever the number of candidates.
    record = question([f"d{i}" for i in range(6)], [2, 5])
    for stage in ("instruct", "end_to_end"):
        assert background(stage, [record], k=3, candidates=6) == "d0\nd2\nd5"
    fields = {"data_type": "qa", "question": ["A?"], "answers": ["a"], "docs": ["the one"]}
    assert background("scp", [parse_record(fields, "scp", "f:1")]).startswith("the one")
    lost = question(["d" * 30] * 20, number=7)
    with pytest.raises(ClaraError, match=r"f\.jsonl:8: the prompt has \d+ tokens and is cut at 400: its whole answer"):
        make("instruct", k=20, records=[lost], documents="text")
    with pytest.raises(ClaraError, match="documents 'texts' must be one of memory, text"):
        Encoding("scp", 1, documents="texts")


def test_shapes_are_the_smallest_multiples_within_the_limits():
    examples = make("end_to_end")
    prompt = max(len(example.prompt_ids) for example in examples)
    target = max(example.target_span for example in examples)
    for multiple in (1, 8, 64):
        shapes = plan_shapes(examples, TOKENIZER, multiple)
        up = lambda n: -(-n // multiple) * multiple  # noqa: B023, E731
        longest = max(len(ids) for example in examples for ids in example.documents)
        limit = text_width(TOKENIZER.doc_max_length + 3, M)
        assert shapes.encoder_width == min(up(longest + M) - M, limit)
        assert shapes.prompt_length == min(up(prompt), TOKENIZER.max_length)
        assert shapes.target_length == up(target)
        assert shapes.documents == 3
        collate(examples, shapes, TOKENIZER)
    assert plan_shapes(examples[1:2], TOKENIZER, documents=20).documents == 20
    assert plan_shapes(make("instruct"), TOKENIZER).query_width == 0
    # A target may take all but the first position, never that one.
    huge = plan_shapes(examples, TOKENIZER, 4096)
    assert (huge.prompt_length, huge.target_length) == (400, 399)
    with pytest.raises(ClaraError, match="no examples"):
        plan_shapes([], TOKENIZER)


def test_an_example_that_does_not_fit_is_named():
    examples = make("end_to_end")
    shapes = plan_shapes(examples, TOKENIZER, 1)
    for field in ("documents", "encoder_width", "query_width", "prompt_length", "target_length"):
        sizes = {name: getattr(shapes, name) for name in Shapes.__dataclass_fields__}
        sizes[field] -= 1
        with pytest.raises(ClaraError, match=rf"f\.jsonl:\d: needs {field}"):
            collate(examples, Shapes(**sizes), TOKENIZER)
    with pytest.raises(ClaraError, match="3 examples do not make a batch of 2"):
        collate(examples, shapes, TOKENIZER, batch_size=2)


def test_cut_documents_and_questions_are_warned_about_once():
    long = "word " * 40
    records = [question([long, "short"], number=0), question([long], number=1)]
    with pytest.warns(UserWarning) as caught:
        examples = make("end_to_end", records=records, query_width=10)
    (message,) = [str(warning.message) for warning in caught]
    assert "1 of 2 different documents" in message and "doc_max_length = 32" in message and "2 questions" in message
    assert len(examples[0].documents[0]) == 35 and len(examples[0].query) == 10
    assert examples[0].documents[0] is examples[1].documents[0]  # equal documents are kept once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("end_to_end")


def test_a_lost_answer_or_memory_names_the_record():
    lost_answer = question(["d"], number=7, question="why " * 120)
    with pytest.raises(
        ClaraError, match=r"f\.jsonl:8: the prompt has \d+ tokens and is cut at 400: its whole answer is lost"
    ):
        make("instruct", records=[*RECORDS, lost_answer])
    with pytest.raises(ClaraError, match="f.jsonl:1: .* a document's memory is lost; raise max_length"):
        make("instruct", k=50, records=[question(["d"] * 50)])
    with pytest.warns(UserWarning, match="1 prompts are longer than max_length = 400"):
        (example,) = make("instruct", records=[question(["d"], answer="because " * 60)])
    assert len(example.prompt_ids) == 400
    with pytest.warns(UserWarning, match="longer than max_length"):
        make("retrieval", records=[lost_answer])  # does not learn answers


def test_progress_counts_up_to_the_total():
    seen = []
    make("end_to_end", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_paraphrase_instructions_follow_the_seed():
    records = [
        parse_record({"data_type": "paraphrase", "answers": ["x"], "docs": [f"d{i}"]}, "scp", f"f:{i}")
        for i in range(20)
    ]
    first, again, other = (make("scp", records=records, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.prompt_ids, b.prompt_ids) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.prompt_ids, b.prompt_ids) for a, b in zip(first, other, strict=True))


def test_a_record_from_a_file_keeps_its_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("\n" + json.dumps({"question": "Who?", "docs": ["a"], "answer": "b"}))
    (example,) = make("instruct", records=read_records(path, "instruct"))
    assert (example.where, example.index) == (f"{path}:2", 0)
