"""The lens reads planted words, and counts them against the right texts."""

import numpy as np
import pytest

from clara_jax.analysis import lens
from clara_jax.metrics.cases import Case

NAN = float("nan")


@pytest.fixture(scope="module")
def words(clara):
    return lens.vocabulary_words(clara.bundle.tokenizer)


def case(number, question, documents, positives):
    return Case(str(number), "question", question, tuple(documents), ("answer",), tuple(positives))


def test_only_words_of_the_vocabulary_are_read(clara, words):
    assert len(words) == clara.bundle.tokenizer.vocab_size
    assert {"oslo", "kyoto", "painter"} <= set(words)
    for token, word in enumerate(words):
        text = clara.bundle.tokenizer.decode([token])
        if word:
            assert word == text.strip().casefold() and word.isalnum() and len(word) > 1
        else:
            assert not text.strip().isalnum() or len(text.strip()) == 1
    assert words[clara.bundle.tokenizer.eos_id] == ""


def test_a_planted_token_comes_first(clara, words):
    """With a tied head, a token's embedding points at it more than at any other here."""
    table = np.asarray(clara.bundle.params["base"]["embed"]["table"])
    planted = np.array([[words.index(word) for word in row] for row in (["oslo", "painter"], ["kyoto", "born"])])
    planted = np.concatenate([planted, planted[:, ::-1], planted])[:5]  # 5 texts in batches of 4
    vectors = table[planted]
    tokens = lens.top_tokens(clara.bundle, vectors, 4)
    assert tokens.shape == (5, 2, lens.TOP)
    np.testing.assert_array_equal(tokens[:, :, 0], planted)
    # The whole order, from the product itself.
    logits = vectors.astype(np.float64) @ table[: len(words)].T.astype(np.float64)
    np.testing.assert_array_equal(tokens[..., :10], np.argsort(-logits, axis=-1)[..., :10])
    assert lens.read_words(tokens[0], words)[:2] == ["oslo", "painter"]


def test_words_come_by_their_place_and_none_twice():
    words = ["", "b", "c", "d"]
    assert lens.read_words(np.array([[3, 0, 1], [2, 3, 0]]), words) == ["d", "c", "b"]


def test_content_words():
    vocabulary = frozenset({"rome", "the", "river", "was", "2004"})
    assert lens.content_words("The RIVER was in Rome, (2004) Tiber!", vocabulary) == {"river", "rome", "2004"}


def test_shares_of_questions():
    vocabulary = frozenset({"nile", "rome", "tiber", "cairo", "flows", "seine", "paris"})
    cases = [
        case(0, "Which river flows in Rome?", ["Tiber Rome flows Nile", "Seine Paris"], [0]),
        case(1, "What is in Cairo?", ["Paris Seine", "Nile Cairo"], [1]),
        case(2, "Cairo?", ["Nile Cairo"], []),  # a single document is the right one
    ]
    lenses = [frozenset({"tiber", "rome", "paris"}), frozenset({"nile", "cairo"}), frozenset()]
    shares = lens.question_shares(cases, lenses, vocabulary, 0)
    np.testing.assert_array_equal(shares["gold"], [1 / 2, 1, 0])  # of {tiber, nile}; {nile}; {nile}
    np.testing.assert_array_equal(shares["rest"], [1 / 2, 0, NAN])  # of {seine, paris} each; nothing
    # Cases 1 and 2 share their document: neither is another for the other one.
    np.testing.assert_array_equal(shares["others"], [0, 1 / 4, 0])  # {nile, cairo} twice; {tiber, rome, flows, nile}
    np.testing.assert_array_equal(shares["question"], [1 / 2, 1, 0])  # of {flows, rome}; {cairo}; {cairo}


def test_shares_of_documents():
    vocabulary = frozenset("abcd efgh ijkl mnop".split())
    documents = ["abcd efgh", "ijkl", "mnop", "nothing known"]
    lenses = [frozenset({"abcd", "mnop"}), frozenset({"ijkl"}), frozenset({"abcd", "efgh"}), frozenset({"abcd"})]
    shares = lens.document_shares(documents, lenses, vocabulary, 0)
    np.testing.assert_array_equal(shares["own"], [1 / 2, 1, 0, NAN])
    np.testing.assert_allclose(shares["others"], [1 / 2, 0, 1 / 2, 1 / 6])


def test_the_section_says_both_with_their_controls():
    documents = {"own": np.array([0.5, 0.7, NAN]), "others": np.array([0.1, 0.1, 0.9])}
    found = lens.lens_section({}, documents, 0)
    assert "60.0 % against 10.0 %" in found["text"] and "question" not in found["text"]
    assert [row[2:] for row in found["table"]["rows"]] == [[0.6, 2], [0.3667, 3]]
    questions = {"gold": 4, "rest": 3, "others": 2, "question": NAN}
    questions = {name: np.array([value]) for name, value in questions.items()}
    found = lens.lens_section(questions, documents, 0)
    assert [row[2] for row in found["table"]["rows"][:4]] == [4, 3, 2, None]


def test_examples_show_what_counts():
    vocabulary = frozenset({"nile", "cairo", "river", "oslo"})
    asked = [("Which river?", ["oslo", "river", "nile"], "The river Nile in Cairo")] * 9
    found = lens.examples_section(asked, [("Cairo " + "x" * 500, ["nile", "cairo"])], vocabulary)
    rows = found["table"]["rows"]
    assert rows[0] == ["question", "Which river?", "oslo, river, nile", "nile"] and len(rows) == lens.EXAMPLES + 1
    assert rows[-1][2:] == ["nile, cairo", "cairo"] and len(rows[-1][1]) == lens.LETTERS + 4
