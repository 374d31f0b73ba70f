"""Questions that repeat others are found: of evaluations, as brute force finds them, and of the same document."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.synthesis.duplicates import NEAR, HeldOutMatch, HeldOutQuestions, duplicate
from clara_jax.text.words import jaccard, words
from tests.locations import shared_data

ASKED = [
    ("a.jsonl:1", "How many looms does the museum in Ostrow have?"),
    ("a.jsonl:2", "Wer baute im Jahr 1874 die alte Mühle an der Lirna?"),
    ("b.jsonl:1", "奥斯特磨坊是谁在利尔纳河左岸建的？"),
]


@pytest.mark.parametrize(
    "question, where, similarity",
    [
        ("how many looms does the MUSEUM in Ostrow have", "a.jsonl:1", 1.0),
        ("How many looms does the museum in Ostrow have now?", "a.jsonl:1", 9 / 10),
        ("The museum in Ostrow: how many looms does it have?", "a.jsonl:1", 9 / 10),
        ("Wer baute 1874 die alte Mühle an der Lirna?", "a.jsonl:2", 9 / 11),
        ("奥斯特磨坊是谁在利尔纳河右岸建的?", "b.jsonl:1", 15 / 17),
    ],
)
def test_found(question, where, similarity):
    match = HeldOutQuestions(ASKED).find(question)
    assert match == HeldOutMatch(where, dict(ASKED)[where], pytest.approx(similarity))


@pytest.mark.parametrize("question", ["How many bells does the church in Sorn have?", "Wer baute die Mühle?", "", "?!"])
def test_not_found(question):
    assert HeldOutQuestions(ASKED).find(question) is None


sentences = st.lists(st.sampled_from("a b c d e f g h i j".split()), max_size=12).map(" ".join)


@given(st.lists(sentences, max_size=12), sentences)
def test_finds_what_brute_force_finds(asked, question):
    held_out = HeldOutQuestions((f"x:{number}", text) for number, text in enumerate(asked))
    equal = [text for text in asked if text == question and text]
    similar = [jaccard(set(words(text)), set(words(question))) for text in asked]
    match = held_out.find(question)
    if equal:
        assert match == HeldOutMatch(f"x:{asked.index(question)}", question, 1.0)
    elif max(similar, default=0) >= NEAR:
        nearest = similar.index(max(similar))
        assert match == HeldOutMatch(f"x:{nearest}", asked[nearest], max(similar))
    else:
        assert match is None


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_of_all_formats(tmp_path):
    scp = written(
        tmp_path / "scp.jsonl",
        {"data_type": "qa", "question": ["Who came first?", "Who came last?"], "answers": ["A", "B"], "docs": ["A, B"]},
        {"data_type": "paraphrase", "question": "", "answers": ["B came."], "docs": ["A, B"]},
    )
    plain = written(tmp_path / "plain.jsonl", {"question": "Who stayed at home?"}, {"question": "who came LAST"})
    held_out = HeldOutQuestions.from_files([scp, str(plain)])
    assert len(held_out) == 3
    assert held_out.find("Who came last") == HeldOutMatch(f"{scp}:1", "Who came last?", 1.0)
    assert held_out.find("Who stayed at home") == HeldOutMatch(f"{plain}:1", "Who stayed at home?", 1.0)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"docs": ["A"]}, 'f.jsonl:2: "question" is missing'),
        ({"question": ["Who?", 3]}, 'f.jsonl:2: "question" holds a number'),
        ({"question": {"text": "Who?"}}, 'f.jsonl:2: "question" holds an object'),
        (["Who?"], "f.jsonl:2: the line holds a list"),
    ],
)
def test_mistakes_in_files(tmp_path, row, message):
    with pytest.raises(ClaraError, match=message):
        HeldOutQuestions.from_files([written(tmp_path / "f.jsonl", {"question": "Who?"}, row)])


def test_files_without_questions(tmp_path):
    with pytest.raises(ClaraError, match="f.jsonl: the file holds no question"):
        paraphrase = {"data_type": "paraphrase", "answers": ["A"], "docs": ["B"]}
        HeldOutQuestions.from_files([written(tmp_path / "f.jsonl", paraphrase)])
    with pytest.raises(ClaraError, match="none.jsonl: no such file"):
        HeldOutQuestions.from_files([tmp_path / "none.jsonl"])


def test_real_questions_of_other_articles():
    folder = shared_data() / "squad"
    held_out = HeldOutQuestions.from_files([folder / "questions.dev.idx.jsonl"])
    lines = (folder / "questions.train.idx.jsonl").read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := held_out.find(json.loads(line)["question"]))]
    assert len(found) == 1 and found[0].similarity < 0.84


EARLIER = [
    ("Who built the old mill near the town of Ostrow?", "Hanna Velde"),
    ("When was the church of Ostrow in Lirna built by the monks?", "1874"),
]


@pytest.mark.parametrize(
    "question, answer, expected",
    [
        ("who built the old mill near the town of Ostrow", "Pieter Holm", 0),  # whatever the answer
        ("Who was it who built the old mill near the town of Ostrow?", "It was Hanna Velde.", 0),
        ("Who was it who built the old mill near the town of Ostrow?", "Pieter Holm", None),
        ("Who built the old mill near the town of Sorn?", "Hanna Velde", None),  # another town
        ("When was the church of Ostrow in Lirna built by the monks there?", "in 1874", 1),
        ("Who sold the mill?", "Hanna Velde", None),
        ("磨坊是谁建的？", "韩娜", None),
    ],
)
def test_duplicates(question, answer, expected):
    assert duplicate(question, answer, EARLIER) == expected


def test_yes_tells_nothing_about_what_was_asked():
    earlier = [("Is there a stone bridge over the river near the mill?", "Yes.")]
    assert duplicate("Is there a wooden bridge over the river near the mill?", "Yes.", earlier) is None
    assert duplicate("Is there a stone bridge over the river near the mill", "Yes.", earlier) == 0


def test_the_first_of_several_duplicates():
    assert duplicate("磨坊是谁建的", "韩娜", [("谁?", "x"), ("磨坊是谁建的？", "y"), ("磨坊是谁建的。", "韩娜")]) == 1


@given(st.text(max_size=100), st.text(max_size=100))
def test_a_pair_duplicates_itself(question, answer):
    assert duplicate(question, answer, [(question, answer)]) == 0
