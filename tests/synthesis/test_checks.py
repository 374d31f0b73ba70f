"""What is refused without a model, and how much of real text is."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.synthesis.checks import (
    CheckLimits,
    DocumentText,
    pair_problem,
    paraphrase_problem,
    question_problem,
)
from clara_jax.text.words import words
from tests.locations import shared_data

LIMITS = CheckLimits()
MILL = DocumentText(
    "The Ostrow mill was built in 1874 by Hanna Velde on the left bank of the Lirna. It burned down twice, and since"
    " 12 May 1931 it has belonged to the Sorn Museum, which shows twenty-one looms there. Entry costs £2.5m a year."
)
MÜHLE = DocumentText(
    "Die Mühle von Ostrow wurde 1874 von Hanna Velde am linken Ufer der Lirna gebaut. Sie brannte zweimal ab und gehört"
    " seit dem 12. Mai 1931 dem Museum Sorn, das dort zwölf Webstühle zeigt und 1.250 Besucher zählt.",
    "de",
)
磨坊 = DocumentText(
    "奥斯特磨坊由韩娜于1874年建在利尔纳河左岸。它两次被烧毁，1931年起归索恩博物馆所有，馆内展出二十一台织布机。", "zh"
)


def kind(problem):
    return problem and problem.kind


@pytest.mark.parametrize(
    "question, expected",
    [
        ("Who built the Ostrow mill?", None),
        ("Name the river that the mill stands on.", None),
        ("In which year did the mill burn", None),
        ("According to the passage above, who owns it?", None),
        ("Wer baute die Mühle?", None),
        ("Nennen Sie den Fluss.", None),
        ("磨坊是谁建的？", None),
        ("请列出磨坊的主人", None),
        ("Πότε χτίστηκε ο μύλος;", None),
        ("متى بنيت الطاحونة؟", None),
        ("", "empty_question"),
        (" ?! ", "empty_question"),
        ("Who?", "short_question"),
        ("Who " + "really " * 60 + "built it?", "long_question"),
        ("The mill was built in 1874.", "no_question"),
        ("The state gave the mill a name.", "no_question"),
        ("Die Mühle brannte zweimal ab.", "no_question"),
        ("磨坊建在河边。", "no_question"),
        ('{"Question1": "Who built it?"}', "question_residue"),
        ("Question1: Who built it?", "question_residue"),
        ("```Who built it?", "question_residue"),
        ("Who built it?</document>", "question_residue"),
        ("Who built {{document}}?", "question_residue"),
        ("Sure! Who built it?", "question_residue"),
        ("问题1：磨坊是谁建的？", "question_residue"),
    ],
)
def test_questions(question, expected):
    assert kind(question_problem(MILL, question, LIMITS)) == expected


def test_marks_that_the_document_has_are_no_residue():
    question = "What does `{}` make in this language?"
    assert question_problem(MILL, question, LIMITS).kind == "question_residue"
    assert question_problem(DocumentText("An empty `{}` makes a dictionary."), question, LIMITS) is None


WHO = "Who built the Ostrow mill?"


@pytest.mark.parametrize(
    "question, answer, expected",
    [
        (WHO, "Hanna Velde", None),
        (WHO, "hanna velde.", None),
        (WHO, "The Ostrow mill was built by Hanna Velde.", None),
        ("Since when has the museum owned it?", "It is owned by the museum since May 12, 1931.", None),
        ("How many looms are shown?", "21", None),
        ("How many looms are shown?", "Twenty-one looms are on show.", None),
        ("When was it built?", "In eighteen hundred and seventy-four.", None),
        ("What does entry cost?", "£2.5 million", None),  # £2.5m
        ("Which is older, the mill or the museum?", "The mill", None),
        ("Did it burn down?", "Yes.", None),
        ("Did it burn down?", "Yes, it burned down twice.", None),
        (WHO, " ", "empty_answer"),
        (WHO, "Hanna Velde " * 50, "long_answer"),
        (WHO, '{"answer": "Hanna Velde"}', "answer_residue"),
        (WHO, "Answer: Hanna Velde", "answer_residue"),
        ("Which mill stands on the Lirna?", "the Lirna mill", "answer_in_question"),
        (WHO, "The document does not explicitly say who built it.", "refusal"),
        (WHO, "Hanna Velde, but her full name is not given in the passage.", "refusal"),
        (WHO, "Not specified", "refusal"),
        (WHO, "I'm sorry, I cannot tell.", "refusal"),
        (WHO, "Das geht aus dem Text nicht hervor.", "refusal"),
        (WHO, "Im Dokument wird das nicht erwähnt; der Text nennt keinen Erbauer, es wird nicht genannt.", "refusal"),
        (WHO, "文中没有提到。", "refusal"),
        ("When was it built?", "1875", "unknown_number"),
        ("When was it built?", "It was built in 1874 and again in nineteen houses.", "unknown_number"),
        (WHO, "Pieter Holm", "unsupported_answer"),
        (WHO, "The Ostrow mill was built by Pieter Holm.", "unsupported_answer"),
        ("Did it burn down?", "No, lightning never struck anything.", "unsupported_answer"),
        ("Which museum?", "No. 5", "unsupported_answer"),  # no "no"
    ],
)
def test_answers(question, answer, expected):
    assert kind(pair_problem(MILL, question, answer, LIMITS)) == expected


def test_a_refusal_that_the_document_holds_is_an_answer():
    text = "Its builder is unknown."
    assert pair_problem(DocumentText(text), WHO, "unknown", LIMITS) is None
    assert pair_problem(MILL, WHO, "unknown", LIMITS).kind == "refusal"


@pytest.mark.parametrize("answer", ["Yes.", "no", "No, it did not.", "Ja.", "是的。", "Non !"])
def test_complex_questions_allow_no_yes_or_no(answer):
    assert pair_problem(MILL, "Did it burn down?", answer, LIMITS, complex=True).kind == "yes_no"


def test_complex_questions_may_be_answered_by_what_they_compare():
    question = "Of the mill and the museum, which is older?"
    assert pair_problem(MILL, question, "The mill", LIMITS).kind == "answer_in_question"
    assert pair_problem(MILL, question, "The mill", LIMITS, complex=True) is None
    for alone in ("Who built the mill of Ostrow?", "Which mill is older than the mill of Ostrow?"):
        assert pair_problem(MILL, alone, "The mill of Ostrow", LIMITS, complex=True).kind == "answer_in_question"
    for 问 in ("奥斯特磨坊和博物馆哪个更老？", "奥斯特磨坊与博物馆哪个更老？"):
        assert pair_problem(磨坊, 问, "奥斯特磨坊", LIMITS, complex=True) is None
    assert pair_problem(磨坊, "奥斯特磨坊叫什么？", "奥斯特磨坊", LIMITS, complex=True).kind == "answer_in_question"


@pytest.mark.parametrize(
    "document, question, answer, expected",
    [
        (MÜHLE, "Wer baute die Mühle?", "Hanna Velde", None),
        (MÜHLE, "Wer baute die Mühle?", "Hanna Velde baute die Mühle von Ostrow.", None),
        (MÜHLE, "Wie viele Webstühle zeigt es?", "12", None),  # zwölf cannot be read
        (MÜHLE, "Wie viele Besucher zählt es?", "1250 Besucher", None),
        (MÜHLE, "Wie viele Besucher zählt es?", "1.350 Besucher", "unknown_number"),
        (MÜHLE, "Wer baute die Mühle?", "Ein Müller namens Holm", "unsupported_answer"),
        (磨坊, "磨坊归谁所有？", "索恩博物馆", None),
        (磨坊, "磨坊归谁所有？", "归索恩博物馆所有", None),
        (磨坊, "磨坊归谁所有？", "河馆恩岸", "unsupported_answer"),  # its characters stand there, but elsewhere
        (磨坊, "磨坊归谁所有？", "奥斯特磨坊的主人是市政府", "unsupported_answer"),
        (磨坊, "哪座磨坊建于1874年？", "1875年", "unknown_number"),
        (磨坊, "奥斯特磨坊叫什么？", "奥斯特磨坊", "answer_in_question"),
    ],
)
def test_answers_in_other_languages(document, question, answer, expected):
    assert kind(pair_problem(document, question, answer, LIMITS)) == expected


def test_problems_name_the_words():
    assert "pieter, holm" in pair_problem(MILL, WHO, "The mill was built by Pieter Holm", LIMITS).text
    assert "1875" in pair_problem(MILL, WHO, "in\n1875", LIMITS).text
    lost = paraphrase_problem(MILL, "a mill " + "of the Lirna since May 12, 1931 by the Sorn Museum " * 3, LIMITS)
    assert (lost.kind, lost.text) == ("lost_number", "the paraphrase has not 2.5, 21, 1874")


TOLD = (
    "On the Lirna's left bank Hanna Velde put up the Ostrow mill in 1874. It was twice destroyed by fire. The Sorn"
    " Museum, its owner from May 12, 1931, has 21 looms on show in it. Whoever comes pays £2.5 million per year."
)


@pytest.mark.parametrize(
    "paraphrase, expected",
    [
        (TOLD, None),
        ("", "empty_paraphrase"),
        (TOLD[:120], "short_paraphrase"),
        (TOLD + TOLD, "long_paraphrase"),
        ("Here is the paraphrase:\n" + TOLD, "paraphrase_residue"),
        ('{"paraphrase": "' + TOLD + '"}', "paraphrase_residue"),
        (MILL.text, "copy"),
        (MILL.text.lower().replace("built", "erected"), "copy"),
        (". ".join(reversed(MILL.text.split(". "))), "copy"),
        (MÜHLE.text, "unrelated_paraphrase"),
        (TOLD.replace("1874", "that year"), "lost_number"),
        (TOLD.replace("May 12, 1931", "12 May"), "lost_number"),
        (TOLD.replace("£2.5 million", "£2.5 million to 3.5 million"), "added_number"),
        (TOLD.replace("Hanna Velde", "someone").replace("Sorn Museum", "house"), "lost_names"),
    ],
)
def test_paraphrases(paraphrase, expected):
    assert kind(paraphrase_problem(MILL, paraphrase, LIMITS)) == expected


ERZÄHLT = (
    "Hanna Velde errichtete 1874 die Ostrower Mühle links an der Lirna. Nach zwei Bränden ist das Museum Sorn ihr"
    " Besitzer (seit 12.5.1931); 12 Webstühle sehen dort 1250 Besucher."
)
转述 = "1874年，韩娜在利尔纳河的左岸修建了奥斯特磨坊。磨坊两次毁于大火，自1931年归索恩博物馆，里面展出二十一台织布机。"


@pytest.mark.parametrize(
    "document, paraphrase, expected",
    [
        (MÜHLE, ERZÄHLT, None),
        (MÜHLE, ERZÄHLT.replace("1874", ""), "lost_number"),
        (MÜHLE, ERZÄHLT.replace("1874", "1874 bis 1876"), "added_number"),
        (磨坊, 转述, None),
        (磨坊, 转述.replace("1874年", ""), "lost_number"),
        (磨坊, 磨坊.text.replace("建在", "造在"), "copy"),
    ],
)
def test_paraphrases_in_other_languages(document, paraphrase, expected):
    assert kind(paraphrase_problem(document, paraphrase, LIMITS)) == expected


@given(st.text(max_size=200), st.data())
def test_what_the_document_says_is_supported(text, data):
    places = [place for place, character in enumerate(text) if character.isspace()]
    start = data.draw(st.sampled_from([0, *places]))
    end = data.draw(st.sampled_from([*(place for place in places if place > start), len(text)]))
    answer = text[start:end]
    problem = pair_problem(DocumentText(text), "?", answer, CheckLimits(answer_words=1000))
    assert kind(problem) == (None if words(answer) else "empty_answer")


@given(st.text(max_size=200))
def test_a_text_is_a_copy_of_itself(text):
    expected = "copy" if words(text) else "empty_paraphrase"
    for language in ("en", "de"):
        assert paraphrase_problem(DocumentText(text, language), text, LIMITS).kind == expected


@given(st.text(max_size=200))
def test_words_of_words_are_the_same(text):
    assert words(" ".join(words(text))) == words(text)


def test_words_of_scripts():
    assert words("Straße, CAFE\u0301 ＡＢＣ１２") == ["strasse", "café", "abc12"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("東京Tower 塔") == ["東", "京", "tower", "塔"]
    assert words("กข") == ["ก", "ข"]


def test_rates_on_real_pairs(sample):
    assert not [question for document, question, _ in sample if question_problem(document, question, LIMITS)]
    counts = Counter(kind(pair_problem(*pair, LIMITS)) for pair in sample)
    share = {name: count / len(sample) for name, count in counts.items()}
    assert share.keys() == {None, "answer_in_question", "refusal", "unknown_number", "unsupported_answer"}
    assert share[None] > 0.94 and share["unsupported_answer"] < 0.03 and share["unknown_number"] < 0.006


def test_rates_on_answers_of_other_documents(sample):
    rng = random.Random(0)
    others = [pair for pair in sample if words(pair[2])[0] not in ("yes", "no")]
    pairs = [(document, question, rng.choice(others)) for document, question, _ in sample]
    pairs = [(document, question, other[2]) for document, question, other in pairs if other[0] is not document]
    taken = sum(pair_problem(*pair, LIMITS) is None for pair in pairs)
    assert taken / len(pairs) < 0.007


def test_rates_on_real_paraphrases():
    rates = {}
    for name in ("wikisplit", "onestop"):
        path = shared_data() / "extra" / f"paraphrase_{name}" / "stage1_pretrain_paraphrase.dev.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [(DocumentText(row["docs"][0]), row["answers"][0]) for row in rows]
        found = Counter(kind(paraphrase_problem(*pair, LIMITS)) for pair in pairs)
        rates[name] = {each: found[each] / len(pairs) for each in found}
        others = zip((document for document, _ in pairs), (told for _, told in pairs[50:] + pairs[:50]), strict=True)
        taken = sum(paraphrase_problem(*pair, LIMITS) is None for pair in others)
        assert taken / len(pairs) < 0.02
    # Sentences that were only parted are copies; made easier, texts lose names and numbers.
    assert rates["wikisplit"][None] > 0.55 and rates["wikisplit"]["copy"] < 0.3
    assert rates["onestop"][None] > 0.6 and rates["onestop"]["copy"] < 0.2
    assert not {"unrelated_paraphrase", "paraphrase_residue", "long_paraphrase"} & {
        *rates["wikisplit"],
        *rates["onestop"],
    }
