"""Records: every accepted spelling, and a clear message for every line that is none."""

import gzip
import json

import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import parse_record, read_records
from tests.locations import shared_data

QUESTION = {"question": "Who?", "docs": ["d0", "d1"], "answer": "Ann"}
QA = {"data_type": "qa", "question": ["Q1", "Q2"], "answers": ["A1", "A2"], "docs": ["d"]}
PARAPHRASE = {"data_type": "paraphrase", "question": "", "answers": ["paraphrased"], "docs": ["d"]}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_scp_records(tmp_path):
    path = write(tmp_path / "a.jsonl", QA, "", "  ", PARAPHRASE, QA | {"question": "Q", "answers": "A", "qid": 7})
    qa, paraphrase, single = read_records(path, "scp")
    assert (qa.kind, qa.questions, qa.answers, qa.documents) == ("qa", ("Q1", "Q2"), ("A1", "A2"), ("d",))
    assert qa.where == qa.qid == f"{path}:1"
    assert (paraphrase.kind, paraphrase.questions, paraphrase.answers) == ("paraphrase", (), ("paraphrased",))
    assert paraphrase.where == f"{path}:4"
    assert (single.questions, single.answers, single.qid) == (("Q",), ("A",), "7")


@pytest.mark.parametrize("documents", ["docs", "context", "content"])
@pytest.mark.parametrize(
    ("answers", "target", "gold"),
    [
        ({"answer": "a"}, "a", ("a",)),
        ({"answers": "a"}, "a", ("a",)),
        ({"answers": ["a", "b"]}, "a", ("a", "b")),
        ({"gold_answer": "a"}, "a", ("a",)),
        ({"golden_answers": ["a", "b"]}, "a", ("a", "b")),
        ({"answer": "long", "gold_answer": "a", "golden_answers": ["b", "a"]}, "long", ("b", "a")),
        ({"answer": None, "gold_answer": "a"}, "a", ("a",)),
    ],
)
def test_spellings(documents, answers, target, gold):
    record = parse_record({"question": "Who?", documents: ["x", "y"], **answers}, "instruct", "f:1")
    assert (record.kind, record.documents, record.questions) == ("question", ("x", "y"), ("Who?",))
    assert (record.answers, record.gold_answers, record.positives) == ((target,), gold, ())


def test_positives_are_sorted_and_unique():
    assert parse_record(QUESTION | {"pos_index": [1, 0, 1]}, "retrieval", "f:1").positives == (0, 1)


def without(fields, name):
    return {key: value for key, value in fields.items() if key != name}


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("instruct", without(QUESTION, "docs"), '"docs" is missing'),
        ("instruct", QUESTION | {"docs": []}, '"docs" is empty; each record needs at least one document'),
        ("instruct", QUESTION | {"docs": ["x", " \n"]}, '"docs"[1] is empty'),
        ("instruct", QUESTION | {"docs": "x"}, '"docs" is a string; it must be a list'),
        ("instruct", QUESTION | {"docs": ["x", 3]}, '"docs"[1] is a number'),
        ("instruct", QUESTION | {"docs": ["\ud83d"]}, '"docs"[0] holds half of a surrogate pair'),
        ("instruct", without(QUESTION, "answer"), '"answer" is missing'),
        ("instruct", QUESTION | {"answer": []}, '"answer" is empty'),
        ("instruct", QUESTION | {"answer": ""}, '"answer" is empty'),
        ("instruct", QUESTION | {"answer": {"text": "x"}}, '"answer" is an object'),
        ("instruct", QUESTION | {"gold_answer": [None]}, '"gold_answer"[0] is null'),
        ("instruct", without(QUESTION, "question"), '"question" is missing'),
        ("instruct", QUESTION | {"question": ["Who?"]}, '"question" is a list'),
        ("instruct", QUESTION | {"question": ""}, '"question" is empty'),
        ("instruct", QUESTION | {"data_type": "paraphrase"}, "\"data_type\" is 'paraphrase'"),
        ("instruct", QUESTION | {"qid": [1]}, '"qid" is a list'),
        ("instruct", ["no", "object"], "the line holds a list"),
        ("end_to_end", QUESTION | {"pos_index": [2]}, '"pos_index"[0] is 2, but the record has 2 documents'),
        ("end_to_end", QUESTION | {"pos_index": [-1]}, '"pos_index"[0] is -1'),
        ("end_to_end", QUESTION | {"pos_index": [0.0]}, '"pos_index"[0] is a number; it must be a whole number'),
        ("end_to_end", QUESTION | {"pos_index": [True]}, '"pos_index"[0] is true or false'),
        ("end_to_end", QUESTION | {"pos_index": 0}, '"pos_index" is a number'),
        ("scp", QA | {"data_type": "poem"}, "\"data_type\" is 'poem'"),
        ("scp", QA | {"answers": ["A1"]}, '"question" has 2 entries and "answers" has 1'),
        ("scp", QA | {"question": []}, '"question" is empty'),
        ("scp", QA | {"question": ["Q", ""]}, '"question"[1] is empty'),
        ("scp", QA | {"docs": ["x", "y"]}, '"docs" holds 2 documents'),
        ("scp", PARAPHRASE | {"answers": []}, '"answers" is empty'),
    ],
)
def test_bad_line_is_named(tmp_path, stage, fields, message):
    good = QA if stage == "scp" else QUESTION
    path = write(tmp_path / "bad.jsonl", good, fields, good)
    with pytest.raises(ClaraError) as caught:
        read_records([path], stage)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_kind_is_qa_as_in_the_released_code():
    for kind in ({}, {"data_type": None}):
        assert parse_record(without(QA, "data_type") | kind, "scp", "f:1") == parse_record(QA, "scp", "f:1")


@pytest.mark.parametrize("nothing", [{}, {"answer": None}, {"answer": ""}, {"golden_answers": []}])
def test_retrieval_needs_no_answer(nothing, tmp_path):
    fields = without(QUESTION, "answer") | {"pos_index": [1]}
    path = write(tmp_path / "a.jsonl", fields | nothing, fields | {"answer": "Ann"})
    one, other = read_records(path, "retrieval")
    assert (one.questions, one.answers, one.gold_answers, one.positives) == (("Who?",), (), (), (1,))
    assert other.answers == ("Ann",)
    with pytest.raises(ClaraError, match='a.jsonl:1: "(golden_answers|answer)" is'):
        read_records(path, "end_to_end")


@pytest.mark.parametrize("nothing", [{}, {"answer": None}, {"answer": ""}, {"answer": " "}, {"golden_answers": []}])
def test_evaluation_needs_no_answer(nothing):
    record = parse_record(without(QUESTION, "answer") | nothing, "instruct", "f:1", answered=False)
    assert (record.questions, record.answers, record.gold_answers) == (("Who?",), (), ())
    for stage, fields in (("scp", QA), ("scp", PARAPHRASE)):
        record = parse_record(without(fields, "answers") | nothing, stage, "f:1", answered=False)
        assert (record.kind, record.answers, record.gold_answers) == (fields["data_type"], (), ())


def test_an_answer_that_is_there_is_taken_by_evaluation():
    for fields, stage in ((QUESTION, "instruct"), (QA, "scp"), (PARAPHRASE, "scp")):
        assert parse_record(fields, stage, "f:1", answered=False) == parse_record(fields, stage, "f:1")
    record = parse_record(QUESTION | {"golden_answers": [], "gold_answer": ""}, "instruct", "f:1", answered=False)
    assert record.gold_answers == ("Ann",)
    for fields, message in (
        (QA | {"answers": ["A1"]}, '"question" has 2 entries and "answers" has 1'),
        (QA | {"answers": ["A1", ""]}, '"answers"[1] is empty'),
    ):
        with pytest.raises(ClaraError, match="f:1: ") as caught:
            parse_record(fields, "scp", "f:1", answered=False)
        assert message in str(caught.value)


def test_malformed_json_has_line_and_column(tmp_path):
    path = write(tmp_path / "bad.jsonl", QUESTION, '{"question": nope}')
    with pytest.raises(ClaraError, match=r"bad\.jsonl:2: column 14: not JSON"):
        read_records(path, "instruct")
    path.write_text("[" * 100_000)
    with pytest.raises(ClaraError, match=r"bad\.jsonl:1: "):
        read_records(path, "instruct")
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ClaraError, match="bad.jsonl:1: byte 15 of the line is not UTF-8"):
        read_records(path, "instruct")


def test_files_that_are_none(tmp_path):
    empty = write(tmp_path / "empty.jsonl", "", " ")
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(QUESTION).encode())[:-12])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(b"{}")
    for paths, message in [
        (tmp_path / "absent.jsonl", "no such file"),
        (tmp_path, "is a directory"),
        (empty, "holds no records"),
        (damaged, "cannot be read"),
        (plain, "cannot be read"),
        ([], "no data file is named"),
    ]:
        with pytest.raises(ClaraError, match=message) as caught:
            read_records(paths, "instruct")
        assert paths == [] or str(caught.value).startswith(str(paths))
    with pytest.raises(ClaraError, match="stage 'sft' is unknown"):
        read_records(empty, "sft")


def test_gzip_byte_order_mark_and_line_separators(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    text = json.dumps(QUESTION | {"docs": ["one\u2028two"]}, ensure_ascii=False)
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode() + b"\r\n" + text.encode()))
    assert [record.documents for record in read_records(path, "instruct")] == [("one\u2028two",)] * 2


def test_limit_and_several_files(tmp_path):
    first = write(tmp_path / "a.jsonl", QUESTION, QUESTION | {"question": "2"}, "not json")
    second = write(tmp_path / "b.jsonl", QUESTION | {"question": "3"})
    assert [record.questions[0] for record in read_records([first, second], "instruct", limit=2)] == ["Who?", "2"]
    assert [record.where for record in read_records([second, second], "instruct")] == [f"{second}:1"] * 2
    with pytest.raises(ClaraError, match=r"a\.jsonl:3"):
        read_records([first, second], "instruct", limit=3)


def test_retrieval_needs_a_positive_somewhere(tmp_path):
    path = write(tmp_path / "r.jsonl", QUESTION | {"pos_index": []}, QUESTION)
    with pytest.raises(ClaraError, match='r.jsonl: no record has a "pos_index"'):
        read_records(path, "retrieval")
    assert len(read_records(path, "end_to_end")) == 2
    path = write(tmp_path / "r.jsonl", QUESTION, QUESTION | {"pos_index": [1]})
    assert [record.positives for record in read_records(path, "retrieval")] == [(), (1,)]


def test_real_data_reads():
    folder = shared_data()
    files = {
        "scp": ["scp_sample.jsonl", "smoke/stage1_pretrain.jsonl"],
        "instruct": ["smoke/stage1_2_instruction.jsonl", "smoke/eval_processed_no_pos.jsonl"],
        "end_to_end": ["smoke/stage2_end_to_end.jsonl", "eval/stage2_eval/nq/eval_processed_with_pos.jsonl"],
        "retrieval": ["smoke/stage2_end_to_end.jsonl"],
    }
    for stage, names in files.items():
        records = read_records([folder / name for name in names], stage)
        assert len(records) > 10 and all(record.gold_answers for record in records)
