"""Cases and suites: a digest tells apart whatever is asked differently."""

import dataclasses

import pytest

from clara_jax.metrics.cases import Case, Suite

CASE = Case("a", "question", "Where is Ulm?", ("Ulm is here.", "Oslo is there."), ("here",), (0,), {"fact": "town"})
SUITE = Suite("mine", True, (CASE, dataclasses.replace(CASE, id="b")))


def test_digest_is_of_what_is_asked():
    again = Suite("renamed", True, (dataclasses.replace(CASE), dataclasses.replace(CASE, id="b")))
    assert again.digest() == SUITE.digest() and len(SUITE.digest()) == 64
    # Pinned: results of one version are compared with those of another.
    assert SUITE.digest().startswith("ef61106a15fbbf5d")


@pytest.mark.parametrize(
    "change",
    [
        dict(id="c"),
        dict(kind="paraphrase"),
        dict(question="Where is Oslo?"),
        dict(documents=CASE.documents[::-1]),
        dict(references=()),
        dict(references=("there",)),
        dict(positives=()),
        dict(tags={"fact": "date"}),
    ],
)
def test_every_field_is_in_the_digest(change):
    changed = Suite("mine", True, (dataclasses.replace(CASE, **change), SUITE.cases[1]))
    assert changed.digest() != SUITE.digest()


def test_suites_differ_by_ranking_and_order():
    assert dataclasses.replace(SUITE, ranked=False).digest() != SUITE.digest()
    assert dataclasses.replace(SUITE, cases=SUITE.cases[::-1]).digest() != SUITE.digest()


def test_kind_is_that_of_the_cases():
    assert SUITE.kind == "question"
    assert Suite("again", False, (Case("a", "paraphrase", "", ("d",), ()),)).kind == "paraphrase"
