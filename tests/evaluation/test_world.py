"""Suites in the synthetic world: answerable, in its vocabulary, balanced where they say so."""

from collections import Counter

import pytest

from clara_jax.data.synthetic import vocabulary
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluation.suites import PARTS, usual_parts, world_suite
from tests.configurations import changed

WORLD = SyntheticConfig(
    world=dict(name_words=12, train_partners=8, eval_partners=4, phrasings=1),
    records=dict(eval=60, paraphrase_share=0.0, candidates=5),
)
TOLD = changed(WORLD, world=dict(phrasings=2), records=dict(paraphrase_share=0.3))


def words(text):
    return set(text.replace(".", " ").replace(",", " ").replace("?", " ").split())


def test_parts():
    suites = {part: world_suite(part, TOLD) for part in PARTS}
    shapes = {name: (suite.kind, suite.ranked, len(suite.cases[0].documents)) for name, suite in suites.items()}
    assert shapes == {
        "end_to_end": ("question", True, 5),
        "documents": ("question", False, 3),
        "needle": ("question", False, 1),
        "counterfactual": ("question", False, 1),
        "paraphrase": ("paraphrase", False, 1),
        "hard": ("question", True, 5),
        "other_words": ("question", False, 3),
    }
    known = words(" ".join(vocabulary(TOLD)))
    for part, suite in suites.items():
        assert suite.name == f"world/{part}" and len({case.id for case in suite.cases}) == len(suite.cases)
        for case in suite.cases:
            assert case.references and words(" ".join((case.question, *case.documents, *case.references))) <= known
            if case.kind == "question":
                assert all(words(case.references[0]) <= words(case.documents[i]) for i in case.positives)
                assert case.positives
        assert suite.digest() == world_suite(part, TOLD).digest()


def test_paraphrases_only_where_the_world_has_some():
    assert usual_parts(WORLD) == ["end_to_end", "documents", "needle"]
    assert usual_parts(TOLD) == ["end_to_end", "documents", "needle", "paraphrase"]
    with pytest.raises(ClaraError, match="world/paraphrase: the world has no paraphrases"):
        world_suite("paraphrase", WORLD)


def test_needles_are_balanced():
    for world in (WORLD, changed(WORLD, records=dict(complex_share=0.5))):
        facts = 6 if world is WORLD else 7
        cases = world_suite("needle", world).cases
        assert len(cases) == 60 // facts * facts
        assert set(Counter(case.tags["fact"] for case in cases).values()) == {60 // facts}
        assert [len(world_suite("needle", world, limit).cases) for limit in (1, facts, 2 * facts + 1)] == [
            facts,
            facts,
            2 * facts,
        ]
    # With one phrasing the place is a property of the fact; with more it is not.
    places = {(case.tags["fact"], case.tags["position"]) for case in world_suite("needle", WORLD).cases}
    assert ("town", "1 of 2") in places and ("town", "2 of 2") not in places
    places = {(case.tags["fact"], case.tags["position"]) for case in world_suite("needle", TOLD).cases}
    assert {("town", "1 of 2"), ("town", "2 of 2")} <= places


def test_changed_facts_are_those_of_the_needles():
    cases = {case.id: case for case in world_suite("needle", WORLD).cases}
    found = world_suite("counterfactual", WORLD).cases
    assert len(found) > 0.8 * len(cases)
    for case in found:
        before = cases[case.id]
        assert case.instead_of == before.references != case.references and case.tags == before.tags
        assert case.documents[0] == before.documents[0].replace(case.instead_of[0], case.references[0])


def test_limits_take_the_first():
    for part in PARTS:
        suite = world_suite(part, TOLD)
        assert world_suite(part, TOLD, 12).cases == suite.cases[:12]
        assert world_suite(part, TOLD, 10**6) == suite and len(suite.cases) <= 60


def test_hard_candidates_share_a_name_word_or_the_fact():
    def shared(case):
        gold = case.documents[case.positives[0]]
        return [len(words(gold) & words(text)) for text in case.documents if text != gold]

    usual, hard = (
        [count for case in world_suite(part, WORLD).cases for count in shared(case)] for part in ("end_to_end", "hard")
    )
    assert sum(hard) / len(hard) > sum(usual) / len(usual)
    first, other = world_suite("hard", WORLD).cases[0], world_suite("end_to_end", WORLD).cases[0]
    assert (first.question, first.references) == (other.question, other.references)


def test_other_words_tell_the_same_world():
    usual, other = world_suite("documents", WORLD), world_suite("other_words", WORLD)
    new = words(" ".join(text for case in other.cases for text in case.documents))
    assert new - words(" ".join(text for case in usual.cases for text in case.documents)) >= {"comes", "grew", "This"}
    references = [[case.references for case in suite.cases] for suite in (usual, other)]
    assert references[0] == references[1]
    with pytest.raises(ClaraError, match="world/other_words: the model was trained on all 3 phrasings"):
        world_suite("other_words", changed(WORLD, world=dict(phrasings=3)))
