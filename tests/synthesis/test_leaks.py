"""Questions of evaluations are found, as brute force finds them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.synthesis.leaks import NEAR, Leak, Leaks
from clara_jax.synthesis.words import jaccard, words
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
    leak = Leaks(ASKED).find(question)
    assert leak == Leak(where, dict(ASKED)[where], pytest.approx(similarity))


@pytest.mark.parametrize("question", ["How many bells does the church in Sorn have?", "Wer baute die Mühle?", "", "?!"])
def test_not_found(question):
    assert Leaks(ASKED).find(question) is None


sentences = st.lists(st.sampled_from("a b c d e f g h i j".split()), max_size=12).map(" ".join)


@given(st.lists(sentences, max_size=12), sentences)
def test_finds_what_brute_force_finds(asked, question):
    leaks = Leaks((f"x:{number}", text) for number, text in enumerate(asked))
    equal = [text for text in asked if text == question and text]
    similar = [jaccard(set(words(text)), set(words(question))) for text in asked]
    leak = leaks.find(question)
    if equal:
        assert leak == Leak(f"x:{asked.index(question)}", question, 1.0)
    elif max(similar, default=0) >= NEAR:
        assert leak == Leak(f"x:{similar.index(max(similar))}", asked[similar.index(max(similar))], max(similar))
    else:
        assert leak is None


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
    leaks = Leaks.from_files([scp, str(plain)])
    assert len(leaks) == 3
    assert leaks.find("Who came last") == Leak(f"{scp}:1", "Who came last?", 1.0)
    assert leaks.find("Who stayed at home") == Leak(f"{plain}:1", "Who stayed at home?", 1.0)


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
        Leaks.from_files([written(tmp_path / "f.jsonl", {"question": "Who?"}, row)])


def test_files_without_questions(tmp_path):
    with pytest.raises(ClaraError, match="f.jsonl: the file holds no question"):
        Leaks.from_files([written(tmp_path / "f.jsonl", {"data_type": "paraphrase", "answers": ["A"], "docs": ["B"]})])
    with pytest.raises(ClaraError, match="none.jsonl: no such file"):
        Leaks.from_files([tmp_path / "none.jsonl"])


def test_real_questions_of_other_articles():
    folder = shared_data() / "squad"
    leaks = Leaks.from_files([folder / "questions.dev.idx.jsonl"])
    lines = (folder / "questions.train.idx.jsonl").read_text(encoding="utf-8").splitlines()
    found = [leak for line in lines if (leak := leaks.find(json.loads(line)["question"]))]
    assert len(found) == 1 and found[0].similarity < 0.84
