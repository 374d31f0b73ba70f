"""Documents cut to windows: as long as they may be, around their answers, drawn and drawn again alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.data.records import parse_record
from clara_jax.data.tokenization import FRAME, ClaraTokenizer
from clara_jax.data.windows import CONTINUATION, cut_records
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
