"""Agreement with the published evaluation scripts of SQuAD, HotpotQA and CLaRa on generated answers.

The cases and the scripts' values were written by `tests.evaluation.make_official_cases`.
"""

import numpy as np
import pytest

from clara_jax.metrics.answers import HOTPOTQA, RELEASED, SQUAD, cover_match, exact_match, token_f1
from clara_jax.metrics.ranking import precision_at, recall_at
from tests.evaluation.make_official_cases import read

CASES = read()
ANSWERS = {"exact_match": exact_match, "f1": token_f1, "cover_match": cover_match}
RANKS = {"recall": recall_at, "precision": precision_at}
CONVENTIONS = {"squad": SQUAD, "hotpotqa": HOTPOTQA, "released": RELEASED}


def ours(name: str, case: dict) -> float:
    script, _, metric = name.partition("_")
    if metric in ANSWERS:
        golds = case["golds"][:1] if script == "hotpotqa" else case["golds"]
        return ANSWERS[metric](case["prediction"], golds, CONVENTIONS[script])
    metric, k = metric.split("@")
    count = len(case["order"])
    scores, positives = np.empty((1, count)), np.zeros((1, count), bool)
    scores[0, case["order"]] = -np.arange(count)
    positives[0, case["positives"]] = True
    return RANKS[metric](scores, np.ones((1, count), bool), positives, int(k))[0]


@pytest.mark.parametrize("name", CASES[0]["official"])
def test_agrees_on_every_case(name):
    # To 12 digits, as the file has them: shares of counts that are not equal differ by far more.
    wrong = [case for case in CASES if round(ours(name, case), 12) != case["official"][name]]
    assert not wrong, f"{len(wrong)} of {len(CASES)}, e.g. {wrong[0]}: {ours(name, wrong[0])}"


def test_the_cases_say_something():
    """No metric is the same nearly everywhere, and the conventions differ."""
    assert len(CASES) >= 1200
    for name in CASES[0]["official"]:
        nothing = sum(case["official"][name] == 0 for case in CASES)
        assert 50 <= nothing <= len(CASES) - 50, name
    values = [case["official"] for case in CASES if len(case["golds"]) == 1]
    assert sum(value["squad_f1"] != value["hotpotqa_f1"] for value in values) >= 20
    assert sum(value["hotpotqa_exact_match"] != value["released_exact_match"] for value in values) >= 5
    assert sum(value["released_cover_match"] != value["released_exact_match"] for value in values) >= 50
    strange = [case for case in CASES if not case["prediction"].isascii()]
    assert len(strange) >= 200 and sum(not case["prediction"].strip() for case in CASES) >= 20
