"""What replies say, in every dress that models have been seen to give them; what they do not clearly say is refused."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.synthesis.replies import SCHEMAS, MalformedReplyError, Verdict, parse

QUESTIONS = ["simple_questions", "complex_questions", "more_simple_questions", "more_complex_questions"]
BOTH = ("Who made it?", "When?")


def test_every_schema_is_strict():
    for schema in SCHEMAS.values():
        assert schema["type"] == "object" and schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
    assert list(SCHEMAS["validate_answer"]["properties"]) == ["reason", "verdict"]  # the reason is written first


@pytest.mark.parametrize("step", QUESTIONS)
def test_questions_as_they_should_be(step):
    reply = {"questions": [" Who made it?\n", "", "When?", "Who made it?", "  "]}
    assert parse(step, json.dumps(reply)) == BOTH
    assert parse(step, '{"questions": []}') == ()


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"questions": ["Who made it?", "When?"]}\n```',
        'Sure! Here are they:\n{"questions": ["Who made it?", "When?"]}\nLet me know {if} you need [more].',
        'As [1] says: {"questions": ["Who made it?", "When?"]}',
        "{'questions': ['Who made it?', 'When?']}",
        '{"questions": ["Who made it?", "When?",],}',
        '{"questions": ["Who made it?" "When?"]}',
        '{"questions": ["Who made it?", "When?"]',
        "{“questions”: [“Who made it?”, “When?”]}",
        '<think>\nPerhaps {"questions": ["What?"]}? No.\n</think>\n{"questions": ["Who made it?", "When?"]}',
        'Perhaps {"questions": ["What?"]}? No.</think>{"questions": ["Who made it?", "When?"]}',
        '{"Question1": "Who made it?", "Question2": "When?"}',
        '{"Question 1": "Who made it?"}\n{"Question 2": "When?"}',
        '{"questions": {"question_1": "Who made it?", "question_2": "When?"}}',
        '{"questions": [{"question": "Who made it?", "hops": 2}, {"question": "When?", "hops": 3}]}',
        '[{"question": "Who made it?"}, {"question": "When?"}]',
        '["Who made it?", "When?"]',
        "```\n['Who made it?', 'When?']\n```",
        '{"Number of Supplementary Questions": 2, "Question1": "Who made it?", "Question2": "When?"}',
    ],
)
def test_questions_in_other_dress(text):
    assert parse("simple_questions", text) == BOTH


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "```json\n[ ]\n```",
        'Nothing is left: {"questions": []}',
        "{'questions': [],}",
        '{"Number of Supplementary Questions": 0}',
        '{"Number of Supplementary Questions": "0"}',
        "{'Number of Supplementary Questions': 0,}",
        '{"questions": [" "]}',
    ],
)
def test_nothing_left_to_ask(text):
    assert parse("more_simple_questions", text) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Who made it?",
        "{}",
        "{",
        '{"questions": null}',
        '{"questions": [1, 2]}',
        '{"questions": [...]}',  # the example in the prompt, said again
        '{"questions": ["Who made it?", null]}',
        '{"question": ["Who made it?"]}',
        '{"answers": ["Ann"]}',
        '{"Number of Supplementary Questions": 2}',
        '<think>Perhaps {"questions": ["Who made it?"]}',
        '{"questions": ["\\ud83d?"]}',
    ],
)
def test_no_questions(text):
    with pytest.raises(MalformedReplyError):
        parse("simple_questions", text)


@pytest.mark.parametrize(
    "text",
    [
        '{"questions": ["Who made it?", "When?", "Where did th',
        '{"questions": ["Who made it?", "When?", "Where?"',  # what may follow is not known
        '{"questions": ["Who made it?", "When?", "Where [in',
        '{"questions": ["Who made it?", "When?", "What is {this}?" and',
        '{"Question1": "Who made it?", "Question2": "When?", "Question3": "Whe',
        '```json\n{"questions": [\n"Who made it?",\n"When?",\n"Whe',
        '["Who made it?", "When?", "Where d',
        '[{"question": "Who made it?"}, {"question": "When?"}, {"question": "Whe',
    ],
)
def test_cut_lists_lose_the_cut_question(text):
    assert parse("simple_questions", text, cut=True) == BOTH


def test_whole_json_before_the_cut_is_whole():
    text = '{"questions": ["Who made it?", "When?"]}'
    assert parse("simple_questions", text, cut=True) == BOTH
    assert parse("simple_questions", f"{text} I hope that thi", cut=True) == BOTH
    assert parse("answer", '{"answer": "Ann"} I hope', cut=True) == "Ann"
    assert parse("validate_answer", '{"reason": "So", "verdict": "correct"} I h', cut=True) == Verdict(True, "So")


def test_texts_that_end_within_a_string_are_cut_whatever_the_server_says():
    assert parse("simple_questions", '{"questions": ["Who made it?", "When?", "Where did th') == BOTH
    with pytest.raises(MalformedReplyError, match="cut"):
        parse("answer", '{"answer": "in the year 19')
    with pytest.raises(MalformedReplyError, match="cut"):
        parse("paraphrase", '{"paraphrase": "It was told [1] that ever')


@pytest.mark.parametrize(
    "step, text",
    [
        ("simple_questions", '{"questions": ["Who made'),
        ("simple_questions", '{"questions": ['),
        ("simple_questions", '{"questions"'),
        ("answer", '{"answer": "An'),
        ("answer", "{'answer': 'Ann'"),
        ("simple_questions", "{'questions': ['Who made it?', 'Wh"),
        ("simple_questions", '{"questions": [], "note": "th'),
        ("answer", "The document does not contain"),
        ("teacher", '{"answer": nul'),
        ("paraphrase", '{"paraphrase": "It was told th'),
        ("validate_answer", '{"reason": "It is correct, but'),
        ("validate_answer", '{"reason": "It is", "verdict": "correct'),
        ("validate_answer", "Correct"),
        ("validate_paraphrase", "<think>Yes, the paraphrase is"),
    ],
)
def test_cut_with_nothing_whole(step, text):
    with pytest.raises(MalformedReplyError):
        parse(step, text, cut=True)


@pytest.mark.parametrize("step", ["answer", "teacher"])
@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"answer": " Ann Lee "}', "Ann Lee"),
        ('{"Answer": "Ann Lee"}', "Ann Lee"),
        ("{'answer': 'Ann Lee'}", "Ann Lee"),
        ('Here: ```{"answer": "Ann Lee",}``` It\'s so.', "Ann Lee"),
        ('{"answer": "She said "no" twice"}', 'She said "no" twice'),
        ('{"answer": "two\nlines"}', "two\nlines"),
        ('{answer: Paris}', "Paris"),
        ('{"answer": "Ann"} and again {"answer": "Ann"}', "Ann"),
        ('{"answer": 1912}', "1912"),
        ('{"answer": 2.50}', "2.50"),
        ('{"answer": null}', None),
        ("{'answer': None}", None),
        ('{"answer": "null"}', None),
        ('{"answer": "The document does not contain this information."}', None),
        ("The document does not contain this information.", None),
        ("This document doesn’t mention the answer", None),
        ("<think>Hm.</think>Not mentioned in the document.", None),
        ('{"answer": "The question cannot be answered from the documents."}', None),
        ('{"answer": "Das Dokument enthält diese Information nicht."}', None),
        ('{"answer": "Das steht nicht im Dokument."}', "Das steht nicht im Dokument."),
        ('{"answer": "nicht angegeben"}', None),
        ('{"answer": "该文档未提及此信息。"}', None),
        ('{"answer": "文档中没有提到"}', None),
        ('{"answer": "无法确定"}', None),
        ('{"answer": "没有皇帝的国家"}', "没有皇帝的国家"),
        ('{"answer": "not far from Rome"}', "not far from Rome"),
        ('{"answer": "The text does not mention her, which angered Ann"}',
         "The text does not mention her, which angered Ann"),
    ],
)  # fmt: skip
def test_answers(step, text, expected):
    assert parse(step, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Ann Lee",
        "",
        '{"answer": ""}',
        '{"answer": true}',
        '{"answer": ["Ann", "Lee"]}',
        '{"answer": {"name": "Ann"}}',
        '{"reply": "Ann"}',
        '{"answer": "Ann"} or {"answer": "Lee"}',
        '{"answer": "\\udc00"}',
        '"Ann"',
    ],
)
def test_no_answers(text):
    with pytest.raises(MalformedReplyError):
        parse("answer", text)


@pytest.mark.parametrize("step", ["validate_answer", "validate_paraphrase"])
@pytest.mark.parametrize(
    "text, correct, reason",
    [
        ('{"reason": "It is there.", "verdict": "correct"}', True, "It is there."),
        ('{"reason": "The verdict: no name.", "verdict": "incorrect"}', False, "The verdict: no name."),
        ('{"verdict": "Correct.", "reason": ""}', True, ""),
        ('{"reason": "It says \\"verdict\\": \\"correct\\" itself", "verdict": "incorrect"}', False,
         'It says "verdict": "correct" itself'),
        ("{'reason': 'So.', 'verdict': 'incorrect',}", False, "So."),
        ('```json\n{"reason": "So.", "verdict": "correct"}\n```', True, "So."),
        ('<think>It is correct. {"verdict": "correct"}</think>{"reason": "No.", "verdict": "incorrect"}', False, "No."),
        ('{"Judgment": "Correct"}', True, ""),
        ('{"Judgement": "INCORRECT"}', False, ""),
        ("{Judgment: Incorrect}", False, ""),
        ("Correct.", True, ""),
        ("**Incorrect**", False, ""),
        ("Judgment: Correct", True, ""),
        ('{"reason": "Gut.", "verdict": "richtig"}', True, "Gut."),
        ('{"reason": "不对", "verdict": "错误"}', False, "不对"),
    ],
)  # fmt: skip
def test_verdicts(step, text, correct, reason):
    assert parse(step, text) == Verdict(correct, reason)


def test_yes_and_no_are_verdicts_on_paraphrases_alone():
    for text, correct in [("Yes", True), ("no.", False), ('{"Judgment": "Yes"}', True), ("否", False)]:
        assert parse("validate_paraphrase", text) == Verdict(correct, "")
        with pytest.raises(MalformedReplyError):
            parse("validate_answer", text)


@pytest.mark.parametrize("step", ["validate_answer", "validate_paraphrase"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is correct, I think.",
        "Not correct",
        "Correct or incorrect",
        '{"reason": "It is correct."}',
        '{"verdict": "partially correct"}',
        '{"verdict": "not correct"}',
        '{"verdict": "maybe"}',
        '{"verdict": ""}',
        '{"verdict": null}',
        '{"verdict": true}',
        '{"verdict": 1}',
        '{"verdict": ["correct"]}',
        '{"verdict": {"answer": "correct"}}',
        '{"verdict": "correct" or "incorrect"}',
        '{"verdict": "correct"|"incorrect"}',
        '{"verdict": "correct/incorrect"}',
        '{"verdict": "correct", "verdict": "incorrect"}',
        '{"verdict": "correct"} No: {"verdict": "incorrect"}',
        '{"verdict": "correct", "judgment": "incorrect"}',
        '{"verdict": "incorrect", "reason": "it says {"verdict": "correct"}"}',
        "{verdict: correct, verdict: incorrect}",
        '{"verdict": "corr',
        '<think>{"verdict": "correct"}',
    ],
)
def test_what_is_not_clearly_a_verdict_is_none(step, text):
    with pytest.raises(MalformedReplyError):
        parse(step, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"paraphrase": "It was told again."}',
        '{"Paraphrase": " It was told again. "}',
        "{'paraphrase': 'It was told again.'}",
        'Certainly:\n```json\n{"paraphrase": "It was told again.",}\n```',
        '<think>Again.</think>\n\n{"paraphrase": "It was told again."}',
    ],
)
def test_paraphrases(text):
    assert parse("paraphrase", text) == "It was told again."


@pytest.mark.parametrize(
    "text",
    ["It was told again.", '{"paraphrase": ""}', '{"paraphrase": null}', '{"paraphrase": ["a"]}', '{"text": "a"}'],
)
def test_no_paraphrases(text):
    with pytest.raises(MalformedReplyError):
        parse("paraphrase", text)


SCRAPS = (
    """{ } [ ] " ' : , \\ ``` json <think> </think> null 1e9 - “ é questions question1 answer verdict correct
incorrect reason paraphrase yes""".split()
    + [" ", "\n", "\ud83d"]
)


@given(
    st.sampled_from(sorted(SCHEMAS)),
    st.one_of(st.text(), st.lists(st.sampled_from(SCRAPS), max_size=40).map("".join)),
    st.booleans(),
)
def test_any_text_is_read_or_refused(step, text, cut):
    try:
        found = parse(step, text, cut)
    except MalformedReplyError:
        return
    if step in QUESTIONS:
        assert isinstance(found, tuple) and all(question.strip() for question in found)
        assert len(set(found)) == len(found)
    elif step.startswith("validate"):
        assert isinstance(found, Verdict)
    else:
        assert (found is None and step != "paraphrase") or found.strip()


DRESS = [
    lambda text: text,
    lambda text: f"```json\n{text}\n```",
    lambda text: f"Here you are:\n\n{text}\n\nAnything else?",
    lambda text: f"<think>What to ask? [Perhaps] {{this}}.</think>\n{text}",
]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1),
    st.sampled_from(DRESS),
    st.booleans(),
)
def test_any_questions_survive(questions, dress, escaped):
    text = dress(json.dumps({"questions": questions}, ensure_ascii=escaped))
    assert parse("simple_questions", text) == tuple(dict.fromkeys(question.strip() for question in questions))


@given(
    st.lists(
        st.text("aé中 ?.,[]{}:'\"\\\n", min_size=1).filter(str.strip), min_size=1, max_size=4, unique_by=str.strip
    ),
    st.data(),
)
def test_no_cut_question_is_kept(questions, data):
    whole = json.dumps({"questions": questions})
    text = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = parse("simple_questions", text, cut=True)
    except MalformedReplyError:
        return
    assert set(found) <= {question.strip() for question in questions}


@pytest.mark.parametrize(
    "text",
    ["{" * 5000, "[" * 20_000, '{"a":' * 2000, '["' * 2000, '["' + "," * 10_000, '["' * 1000 + '"]'],
    ids=["objects", "lists", "keys", "texts", "commas", "closed"],
)
def test_runaway_replies_are_refused_in_time(text):
    began = time.perf_counter()
    for step in ("answer", "validate_answer"):
        for cut in (False, True):
            with pytest.raises(MalformedReplyError):
                parse(step, text, cut)
    assert time.perf_counter() - began < 10
