"""Selections that are known to change, or not to."""

import numpy as np
import pytest

from clara_jax.analysis import selection
from clara_jax.memory_count import FIXED
from clara_jax.method.estimators.methods import select

RNG = np.random.default_rng(0)


def at(*cosines):
    """Memories [D, 1, 2] with these cosines to the query [1, 2] = (1, 0)."""
    return np.array([[[x, (1 - x * x) ** 0.5]] for x in cosines], np.float32)


QUERY = np.array([[1, 0]], np.float32)


def test_scores_and_the_best_are_those_of_the_method(clara):
    documents = [f"Ada number {i} was born in Oslo." for i in range(6)]
    questions = ["Where was Ada number 2 born?", "Who is Ada?"]
    memories = clara.compress(documents)
    ranking = clara.rank(questions, memories, k=6)
    scores = selection.score(clara.encode_questions(questions), [memories.array, memories.array[:4]], FIXED)
    assert [len(row) for row in scores] == [6, 4]
    np.testing.assert_allclose(scores[0][ranking.indices[0]], ranking.scores[0], atol=1e-6)
    for k in (1, 3):
        assert selection.best(scores[0], k) == set(ranking.indices[0, :k].tolist())
    ties = np.array([0.5, 0.7, 0.5, 0.7, 0.5], np.float32)
    assert (
        selection.best(ties, 3) == {0, 1, 3} == set(np.asarray(select(ties[None], 3, "iterative", 1.0)[1])[0].tolist())
    )


def test_overlaps():
    before = [np.array([4.0, 3, 2, 1]), np.array([4.0, 3, 2, 1]), np.array([1.0, 2, 3])]
    after = [np.array([3.0, 4, 2, 1]), np.array([4.0, 1, 2, 3]), np.array([3.0, 1, 2])]
    np.testing.assert_array_equal(selection.overlaps(before, after, 2), [1, 0.5, 0.5])
    np.testing.assert_array_equal(selection.overlaps(before, after, 1), [0, 1, 0])


def test_gaps():
    found = selection.gaps([np.array([0.1, 0.9, 0.4]), np.array([0.5, 0.5, 0.2, 0.1])], 2)
    np.testing.assert_allclose(found[1], [0.5, 0])
    np.testing.assert_allclose(found[2], [0.3, 0.3])
    np.testing.assert_allclose(np.sort(found[0]), [0, 0.1, 0.3, 0.3, 0.5])
    section = selection.gaps_section(found, 2)
    assert [row[:2] for row in section["table"]["rows"][:2]] == [["s(1) - s(2)", 2], ["s(2) - s(3)", 2]]
    assert section["table"]["rows"][0][-2:] == [0.5, 0.5] and section["picture"].startswith("data:image/svg+xml")
    found = selection.gaps([np.array([0.1, 0.9, 0.4])], 1)
    assert [row[0] for row in selection.gaps_section(found, 1)["table"]["rows"]] == [
        "s(1) - s(2)",
        "all neighbours (control)",
    ]


def test_what_changes_a_selection_and_what_does_not():
    queries = np.stack([QUERY, QUERY[:, ::-1], QUERY])
    # The second question asks for the other axis: its order is the reverse.
    documents = [at(0.9, 0.6, 0.3), at(0.9, 0.6, 0.3), at(0.9, 0.8999, 0.3, 0.2)]
    found = selection.stability(queries, documents, 1, 0, FIXED)
    np.testing.assert_array_equal(found["memories stored as int8"][:2], 1)
    np.testing.assert_array_equal(found[selection.UNSELECTED], 1)
    noisy = found[selection.NOISY]
    assert noisy.shape == (selection.DRAWS, 3) and (noisy[:, :2] == 1).all() and 0 < noisy[:, 2].mean() < 1
    np.testing.assert_array_equal(found[selection.OTHER_QUESTION], [0, 0, 1])
    assert 0 < found[selection.RANDOM].mean() < 1
    rows = {row[0]: row[1:] for row in selection.stability_section(found, 1)["table"]["rows"]}
    assert rows[selection.UNSELECTED] == [3, 0, 1]


def test_a_failed_check_is_said():
    names = ("memories stored as int8", selection.NOISY, selection.RANDOM, selection.UNSELECTED)
    found = {name: np.ones(4) for name in names}
    assert "As it must be" in selection.stability_section(found, 2)["text"]
    found[selection.UNSELECTED] = np.array([1, 1, 0.5, 1])
    assert "The check fails" in selection.stability_section(found, 2)["text"]


def test_int8_changes_what_lies_closer_than_it_can_tell():
    exact = RNG.normal(size=(1, 4, 64)).astype(np.float32)
    near = exact * (1 + 1e-3 * RNG.normal(size=(40, 4, 64)))
    (stored,) = selection.stored([near.astype(np.float32)], "int8")
    before, after = selection.score(exact, [near], FIXED), selection.score(exact, [stored], FIXED)
    assert 0 < selection.overlaps(before, after, 20)[0] < 1


def test_random_overlap_is_k_of_d():
    documents = [RNG.normal(size=(20, 1, 3)).astype(np.float32) for _ in range(30)]
    queries = RNG.normal(size=(30, 1, 3)).astype(np.float32)
    found = selection.stability(queries, documents, 5, 0, FIXED)
    assert found[selection.RANDOM].mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(found[selection.UNSELECTED], 1)
