"""Documents cut to windows: as long as they may be, around their answers, drawn and drawn again alike."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax import command
from clara_jax.data import __main__ as data
from clara_jax.input_pipeline.document_tokenizer import FRAME
from clara_jax.input_pipeline.records import parse_record, read_records
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.windows import CONTINUATION, cut_records
from tests import tiny

LENGTH = 12
LONG = " ".join(tiny.document(i) for i in range(12))


@pytest.fixture(scope="module")
def tokenizer():
    return ClaraTokenizer(tiny.tokenizer(), LENGTH, 3, different_mem_tokens=False)


def passage(text, stage="autoencode"):
    return parse_record({"text": text}, stage, "pool.jsonl:1")


def asked(answer, document=LONG, positives=(0,)):
    fields = {"question": "Where?", "docs": [document, LONG[40:]], "answer": answer, "pos_index": list(positives)}
    return parse_record(fields, "instruct", "questions.jsonl:1")


def tokens(tokenizer, text):
    return len(tokenizer.document_tokens([text])[0]) - FRAME


def test_a_window_is_a_part_of_its_passage_and_its_own_target(tokenizer):
    records = cut_records([passage(LONG)] * 40, tokenizer, "start", 3)
    documents = [record.documents[0] for record in records]
    assert all(document in LONG and tokens(tokenizer, document) == LENGTH for document in documents)
    assert all(record.answers == record.documents for record in records)
    assert len(set(documents)) > 20, "drawn from everywhere"
    assert cut_records([passage(LONG)] * 40, tokenizer, "start", 3) == records
    assert cut_records([passage(LONG)] * 40, tokenizer, "start", 4) != records


def test_a_continuation_is_what_follows(tokenizer):
    records = cut_records([passage(LONG, "continue")] * 20, tokenizer, "start", 0)
    for record in records:
        (document,), (target,) = record.documents, record.answers
        assert document + target in LONG
        assert tokens(tokenizer, document) == LENGTH and tokens(tokenizer, target) == CONTINUATION


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=80), stage=st.sampled_from(["autoencode", "continue"]))
def test_any_passage_gives_a_record_or_none(tokenizer, text, stage):
    if not text.strip() or "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return
    for record in cut_records([passage(text, stage)], tokenizer, "start", 1):
        (document,), (target,) = record.documents, record.answers
        assert document.strip() and target.strip()
        # A character of several tokens stays whole at either end, and what is cut out of a word is read anew.
        assert tokens(tokenizer, document) <= LENGTH + 8


@pytest.mark.parametrize("answer", ["Rouen", "KYOTO", "Ada number 8"])
def test_a_positive_document_is_cut_around_its_answer(tokenizer, answer):
    for seed in range(5):
        (record,) = cut_records([asked(answer)], tokenizer, "answer", seed)
        assert answer.casefold() in record.documents[0].casefold()
        assert tokens(tokenizer, record.documents[0]) == LENGTH
        assert LONG[40:].startswith(record.documents[1]), "any other keeps its beginning"
    windows = {cut_records([asked(answer)], tokenizer, "answer", seed)[0].documents[0] for seed in range(12)}
    assert len(windows) > 2


def test_what_need_not_be_cut_stays(tokenizer):
    short = asked("Rouen", "Born in Rouen.")
    assert cut_records([short], tokenizer, "answer", 0)[0].documents[0] == "Born in Rouen."
    assert cut_records([asked("Rouen")], tokenizer, "start", 0) == [asked("Rouen")]
    (elsewhere,) = cut_records([asked("Nowhere")], tokenizer, "answer", 0)
    assert LONG.startswith(elsewhere.documents[0]), "without the answer: the beginning"
    divided = parse_record({"docs": ["Ada was"], "answer": "born in Rouen."}, "continue", "x:1")
    assert cut_records([divided], tokenizer, "start", 0) == [divided]


def test_an_answer_longer_than_the_window(tokenizer):
    (record,) = cut_records([asked(LONG[100:260])], tokenizer, "answer", 0)
    assert tokens(tokenizer, record.documents[0]) <= LENGTH + 1 and record.documents[0].strip() in LONG


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("windows") / "base")


@pytest.mark.parametrize("kind", ["autoencode", "continue"])
def test_the_command_writes_records_of_its_kind(base, tmp_path, monkeypatch, capsys, kind):
    lines = [{"text": LONG}, {"text": "a"}, {"text": LONG[9:]}]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [str(tmp_path / "pool.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--kind", kind]
    options = ["--tokens", str(LENGTH), "--tokenizer", str(base)]
    monkeypatch.setattr(sys, "argv", ["data", "passages", *arguments, *options])
    data.main()
    records = read_records(str(tmp_path / "out.jsonl"), kind)
    assert len(records) == (3 if kind == "autoencode" else 2) and {record.kind for record in records} == {kind}
    assert all(record.documents[0] in LONG or record.documents[0] == "a" for record in records)
    assert all(record.answers for record in records)
    said = capsys.readouterr().out
    assert ("1 were too short" in said) == (kind == "continue")
    monkeypatch.setattr(sys, "argv", ["data", "passages", *arguments, *options, "--limit", "0"])
    with pytest.raises(SystemExit):
        command.run(data.main)
    assert "--limit: 0 must be at least 1" in capsys.readouterr().err
