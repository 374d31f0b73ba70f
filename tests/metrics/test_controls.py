"""Which cases a condition takes, and what controls are made of."""

import dataclasses

import numpy as np
import pytest

from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import (
    CONDITIONS,
    CRAMMED,
    MEMORY_CONDITIONS,
    TEXT_CONDITIONS,
    cases_of,
    draws,
    gold,
    other_cases,
    random_selection,
    repeated,
    shuffled,
    shuffled_within,
)


def case(name, documents, positives=(), kind="question"):
    return Case(name, kind, "Who?" if kind == "question" else "", tuple(documents), ("A",), positives)


def names(condition, suite, k=2):
    return [case.id for case in cases_of(CONDITIONS[condition], suite, k)]


MANY = case("many", "abcd", (1,))
UNKNOWN = case("unknown", "efgh")
ALL_RIGHT = case("all right", "ij", (0, 1))
ONE = case("one", "k")
TOLD = case("told", "l", kind="paraphrase")


def test_each_way_takes_the_cases_that_it_makes_a_difference_for():
    suite = Suite("s", True, (MANY, UNKNOWN, ALL_RIGHT, ONE, TOLD))
    everything = [case.id for case in suite.cases]
    for condition in ("clara", "no_memory", "other_memory", "shuffled_memory", "rank"):
        assert names(condition, suite) == everything, condition
    assert names("crammed", suite) == everything
    assert names("gold_memory", suite) == ["many"]
    assert names("shuffled_within", suite) == ["many", "unknown", "all right"]
    assert names("shuffled_within", suite, k=1) == []
    assert names("random_selection", suite) == ["many", "unknown"]
    assert names("closed_book", suite) == names("text_pruned", suite) == everything[:-1]
    assert names("text_top1", suite) == names("text_topk", suite) == ["many", "unknown", "all right"]
    assert names("text_oracle", suite) == ["many", "all right", "one", "told"]
    unranked = Suite("s", False, suite.cases)
    assert names("random_selection", unranked) == names("rank", unranked) == []


def test_windows_are_written_out_from_memories_alone():
    suite = Suite("w", False, (case("one", "k", kind="autoencode"), case("two", "l", kind="autoencode")))
    taking = {condition.name for condition in CONDITIONS.values() if cases_of(condition, suite, 2)}
    assert taking == {"clara", "no_memory", "other_memory", "shuffled_memory", "crammed"}


def test_a_way_may_take_the_first_cases_alone():
    suite = Suite("s", True, (TOLD, MANY, UNKNOWN))
    gold_alone = dataclasses.replace(CONDITIONS["gold_memory"], first=1)
    assert [case.id for case in cases_of(dataclasses.replace(CRAMMED, first=2), suite, 2)] == ["told", "many"]
    assert [case.id for case in cases_of(gold_alone, suite, 2)] == ["many"]


def test_the_right_documents_are_the_positive_ones_or_the_only_one():
    assert [gold(case) for case in (MANY, UNKNOWN, ALL_RIGHT, ONE)] == [(1,), (), (0, 1), (0,)]


def test_another_case_shares_no_document_and_is_half_of_the_list_away():
    suite = Suite("s", False, (case("1", "ab"), case("2", "bc"), case("3", "cd"), case("4", "de")))
    assert {name: other.id for name, other in other_cases(suite).items()} == {"1": "3", "2": "4", "3": "1", "4": "2"}


def test_a_case_that_shares_with_every_other_has_no_other():
    suite = Suite("s", False, (case("1", "ab"), case("2", "a"), case("3", "b")))
    assert {name: other.id for name, other in other_cases(suite).items()} == {"2": "3", "3": "2"}
    assert names("other_memory", suite) == ["2", "3"]
    assert other_cases(Suite("s", False, (MANY,))) == {}


def test_draws_are_a_cases_own():
    first, again, other, seed = (draws(*key).random(4) for key in ((MANY, 0), (MANY, 0), (ONE, 0), (MANY, 1)))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any() and not np.isclose(first, seed).any()


def test_documents_are_repeated_or_cut():
    assert repeated(("a", "b"), 5) == ("a", "b", "a", "b", "a")
    assert repeated(("a", "b"), 1) == ("a",)


@pytest.mark.parametrize("condition", [*MEMORY_CONDITIONS, CRAMMED, *TEXT_CONDITIONS])
def test_only_memory_conditions_are_controls(condition):
    assert condition.control == (condition in MEMORY_CONDITIONS and condition.name != "clara")


def test_shuffled_memories_are_the_same_vectors():
    memories = np.arange(4 * 8 * 3).reshape(4, 8, 3)
    whole, within = (change(memories, np.random.default_rng(0)) for change in (shuffled, shuffled_within))
    for found in (whole, within):
        assert found.shape == memories.shape and not (found == memories).all()
        assert {tuple(vector) for vector in found.reshape(-1, 3)} == {
            tuple(vector) for vector in memories.reshape(-1, 3)
        }
    assert [set(memory.ravel()) for memory in within] == [set(memory.ravel()) for memory in memories]
    assert [set(memory.ravel()) for memory in whole] != [set(memory.ravel()) for memory in memories]


def test_a_random_selection_is_of_distinct_documents():
    many = case("a", "abcdefgh")
    assert len(set(random_selection(many, 3, 0))) == 3 and random_selection(many, 3, 0) == random_selection(many, 3, 0)
    assert sorted(random_selection(many, 9, 0)) == list(range(8))
