"""Candidates of any questions over any documents: what the modes promise, checked by properties."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.data.importers.candidates import (
    NORMAL,
    ORACLE,
    CandidateOptions,
    CandidateStatistics,
    Pool,
    choose_candidates,
)
from clara_jax.data.importers.candidates import _Ranking as Ranking
from clara_jax.data.importers.examples import ImportedDocument, ImportedExample
from clara_jax.data.importers.retrievers import BM25, Dense
from clara_jax.metrics.answers import normalize
from tests.data.importers.embedder import HashingEmbedder

WORDS = ["rome", "oslo", "fountain", "river", "port", "old", "blue", "norway"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
documents = st.builds(ImportedDocument, st.sampled_from(["", "Title", "Rome"]), texts)


@st.composite
def imports(draw):
    """Examples with ids q0, q1, ..., each with a gold document, and documents of no example."""
    examples = []
    for i in range(draw(st.integers(1, 4))):
        candidates = draw(st.lists(documents, min_size=1, max_size=4))
        gold = draw(st.lists(st.booleans(), min_size=len(candidates), max_size=len(candidates)).filter(any))
        answers = tuple(draw(st.lists(st.sampled_from([*WORDS, "yes"]), min_size=1, max_size=2)))
        examples.append(ImportedExample(f"q{i}", draw(texts), answers, tuple(candidates), tuple(gold), f"f:{i}"))
    return examples, draw(st.lists(documents, max_size=12))


def full(documents):
    return [document.full() for document in documents]


def filled(examples, pool, options, retriever=BM25):
    statistics = CandidateStatistics.of(options)
    return list(choose_candidates(examples, pool, retriever(pool.texts), options, statistics)), statistics


def pool_of(examples, others):
    return Pool([*(text for example in examples for text in full(example.documents)), *full(others)])


def gold_of(example):
    return {text for text, gold in zip(full(example.documents), example.gold, strict=True) if gold}


def bears(example, text):
    words = f" {normalize(text)} "
    return any(f" {normalize(answer)} " in words for answer in example.answers if answer != "yes")


@settings(max_examples=60, deadline=None)
@given(imports(), st.integers(1, 8), st.booleans(), st.integers(0, 3))
def test_oracle(drawn, count, drop, seed):
    examples, others = drawn
    pool = pool_of(examples, others)
    results, statistics = filled(examples, pool, CandidateOptions(count, ORACLE, drop, seed))
    bearing = 0
    for example, result in zip(examples, results, strict=True):
        assert result.example is example
        gold = gold_of(example)
        # No text twice; N, or everything there is.
        assert len(set(result.documents)) == len(result.documents) <= count
        allowed = [t for t in pool.texts if t not in gold and not (drop and bears(example, t))]
        expected_gold = min(len(gold), max(count - 1, 1))
        assert len(result.documents) == min(count, expected_gold + len(allowed))
        # Gold is in and marked; what is not gold never is.
        assert {result.documents[i] for i in result.positives} == gold & set(result.documents)
        assert len(result.positives) == expected_gold
        assert result.positives == tuple(sorted(result.positives))
        negatives = [text for text in result.documents if text not in gold]
        if drop:
            assert not any(bears(example, text) for text in negatives)
        bearing += sum(bears(example, text) for text in (negatives if not drop else set(pool.texts) - gold))
        # The question's documents come before any other.
        related = {t for t in full(example.documents) if t in allowed}
        assert len(related & set(negatives)) == min(len(related), len(negatives))
    assert statistics.questions == statistics.with_gold == len(examples)
    # Left out, each counts once, as far as the search for candidates went.
    assert statistics.answer_bearing <= bearing if drop else statistics.answer_bearing == bearing


@settings(max_examples=60, deadline=None)
@given(imports(), st.integers(1, 8), st.booleans())
def test_normal_is_the_top_of_the_ranking(drawn, count, drop):
    examples, others = drawn
    # Some gold documents are in no corpus: here those of the first example.
    pool = pool_of(examples[1:], [*others, ImportedDocument("", "zzz")])
    retriever = BM25(pool.texts)
    results, statistics = filled(examples, pool, CandidateOptions(count, NORMAL, drop))
    for example, result in zip(examples, results, strict=True):
        gold = gold_of(example)
        (scores,) = retriever.scores([example.question])
        allowed = [i for i, text in enumerate(pool.texts) if text in gold or not (drop and bears(example, text))]
        assert len(result.documents) == len(set(result.documents)) == min(count, len(allowed))
        found = [scores[pool.place[text]] for text in result.documents]
        assert found == sorted((scores[i] for i in allowed), reverse=True)[:count]
        assert [text in gold for text in result.documents] == [
            i in result.positives for i in range(len(result.documents))
        ]
    shares = [len(gold_of(e) & set(r.documents)) / len(gold_of(e)) for e, r in zip(examples, results, strict=True)]
    if not drop:
        assert statistics.gold_share[count] == pytest.approx(sum(shares))


@settings(max_examples=30, deadline=None)
@given(imports(), st.sampled_from([ORACLE, NORMAL]), st.sampled_from(["bm25", "dense"]), st.randoms())
def test_the_order_of_questions_and_documents_does_not_matter(drawn, mode, kind, rng):
    examples, others = drawn
    make = BM25 if kind == "bm25" else lambda texts: Dense(texts, HashingEmbedder())
    options = CandidateOptions(4, mode, seed=7)
    first, _ = filled(examples, pool_of(examples, others), options, make)
    turned = rng.sample(examples, len(examples))
    second, _ = filled(turned, pool_of(turned, rng.sample(others, len(others))), options, make)
    by_id = {one.example.id: (one.documents, one.positives) for one in first}
    assert {one.example.id: (one.documents, one.positives) for one in second} == by_id


def test_seed_and_id_decide():
    documents = (ImportedDocument("", "fountain of rome"), ImportedDocument("", "old rome"))
    others = [ImportedDocument("", f"nothing {i}") for i in range(50)]
    examples = [
        ImportedExample(f"q{i}", "where is the fountain", ("rome",), documents, (True, False), "f:1") for i in range(40)
    ]
    pool = pool_of(examples, others)
    first, _ = filled(examples, pool, CandidateOptions(5, seed=1))
    again, _ = filled(examples, pool, CandidateOptions(5, seed=1))
    other, _ = filled(examples, pool, CandidateOptions(5, seed=2))
    assert first == again and first != other
    # Gold stands at every place, and what nothing speaks for differs from question to question.
    assert {one.positives for one in first} == {(i,) for i in range(5)}
    assert len({text for one in first for text in one.documents}) > 40
    # Where there is nothing to choose, the order is still the seed's.
    few = pool_of(examples, [])
    orders = [[one.documents for one in filled(examples, few, CandidateOptions(5, seed=seed))[0]] for seed in (1, 2)]
    assert orders[0] != orders[1] and list(map(set, orders[0])) == list(map(set, orders[1]))


def test_the_gold_that_is_left_out_is_no_negative():
    documents = tuple(ImportedDocument("", f"rome {i}") for i in range(4))
    example = ImportedExample("q", "rome", ("x",), documents, (True, True, True, False), "f:1")
    pool = pool_of([example], [ImportedDocument("", "oslo")])
    ((result,), _) = filled([example], pool, CandidateOptions(4, most_gold=1))
    assert sorted(result.documents) == ["oslo", "rome 0", "rome 3"]
    assert [result.documents[i] for i in result.positives] == ["rome 0"]


def test_answers_in_documents():
    """By words, not letters; normalized; never yes and no."""
    others = ("The OLD-Rome!", "romeo", "yes no", "an old  rome in oslo", "rome old")
    others = [ImportedDocument("", text) for text in others]
    gold = ImportedDocument("", "fountain of old rome")

    def count(*answers):
        example = ImportedExample("q", "rome", answers, (gold,), (True,), "f:1")
        _, statistics = filled([example], pool_of([example], others), CandidateOptions(10))
        return statistics.answer_bearing

    assert count("Old Rome") == 1 and count("rome") == 2 and count("yes") == count("no") == count("The") == 0
    assert count("the oldrome") == 1  # punctuation goes, as in exact match
    assert count("romeo", "old rome") == 2 and count() == 0


def test_titles():
    assert ImportedDocument("Rome", "It is old.").full() == "Rome\nIt is old."
    assert ImportedDocument("Rome", "It is old.").full(titled=False) == "It is old."
    assert ImportedDocument("", "It is old.").full() == "It is old."
    assert ImportedDocument("Rome", "Rome").full() == "Rome"
    for chunk in ("Rome in May\nIt is old.", "Rome in\nIt is old."):  # as a corpus has them
        assert ImportedDocument("Rome in May", chunk).full() == chunk
    for text in ("Rome in June\nIt is old.", "May\nIt is old.", "\nIt is old."):
        assert ImportedDocument("Rome in May", text).full() == f"Rome in May\n{text}"


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=30), st.integers(1, 40), st.integers(0, 29))
def test_rankings(scores, ahead, start):
    values = np.array(scores, np.float32)
    size = len(values)
    start = start % max(size, 1)
    expected = sorted(range(size), key=lambda i: (-values[i], (i - start) % size))
    ranking = Ranking(values, start, ahead)
    assert list(ranking) == expected
    assert ranking.first(min(ahead, 3)) == set(expected[: min(ahead, 3)])


def test_a_pool_holds_each_text_once_in_no_order():
    texts = [f"text {i}" for i in range(100)]
    pool = Pool(texts * 2)
    assert sorted(pool.texts) == sorted(texts) and pool.texts != texts
    assert pool.texts == Pool(random.Random(0).sample(texts, 100)).texts
    assert all(pool.texts[place] == text for text, place in pool.place.items())
