"""Two directories with a known difference."""

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.compare import compare, text
from tests.evaluation import made_up

NAME = made_up.suite().name


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The second knows two more answers; of its other suites one asks something else, one is new."""
    folder = tmp_path_factory.mktemp("reports")
    answers = made_up.answers
    first = {
        NAME: {"m/clara": answers({0, 1}, ranked=True), "m/no_memory": answers({0}), "old/clara": answers({0})},
        "same": {"m/clara": answers({0, 1})},
        "other": {"m/clara": answers({0})},
    }
    second = {
        NAME: {"m/clara": answers({0, 1, 2, 3}, ranked=True)[:6], "m/no_memory": answers({0})},
        "same": {"m/clara": answers(set(range(8)))},
        "other": {"m/clara": answers({0}, cases=4)},
        "new": {"m/clara": answers({0})},
    }
    suites = {name: made_up.suite(name) for name in (NAME, "same", "other", "new")}
    return (
        made_up.directory(folder / "a", [suites[name] for name in first], first),
        made_up.directory(
            folder / "b", [*(suites[name] for name in (NAME, "same", "new")), made_up.suite("other", 4)], second
        ),
    )


@pytest.fixture(scope="module")
def comparison(directories):
    return compare(*directories, resamples=1000)


def row(comparison, suite, system, metric):
    (found,) = [
        entry
        for entry in comparison["rows"]
        if (entry["suite"], entry["system"], entry["metric"]) == (suite, system, metric)
    ]
    return found


def test_a_known_difference(comparison):
    found = row(comparison, NAME, "m/clara", "f1")
    assert found["n"] == 6  # what both have
    assert found["a"] == pytest.approx(2 / 6, abs=1e-6) and found["b"] == pytest.approx(4 / 6, abs=1e-6)
    assert found["mean"] == pytest.approx(2 / 6, abs=1e-6) and 0 <= found["low"] < found["mean"] < found["high"]
    rate = row(comparison, NAME, "m/clara", "compress_rate")
    assert rate["a"] == rate["b"] == pytest.approx(160 / 15, abs=1e-6) and rate["mean"] == 0 and rate["p"] == 1
    same = row(comparison, NAME, "m/no_memory", "f1")
    assert (same["mean"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_p_values_allow_for_all_comparisons_of_a_metric(comparison):
    rows = [entry for entry in comparison["rows"] if entry["metric"] == "f1"]
    assert [(entry["suite"], entry["system"]) for entry in rows] == [
        (NAME, "m/clara"),
        (NAME, "m/no_memory"),
        ("same", "m/clara"),
    ]
    assert {entry["comparisons"] for entry in rows} == {3}
    first, second, third = sorted(rows, key=lambda entry: entry["p"])
    assert first["suite"] == "same" and first["p"] < 0.01 and first["holm"] == pytest.approx(3 * first["p"], abs=1e-6)
    assert second["holm"] == pytest.approx(max(first["holm"], min(1, 2 * second["p"])), abs=1e-6) and third["holm"] == 1


def test_what_cannot_be_compared_is_said(comparison, directories):
    assert comparison["notes"] == [
        f"new: is only in {directories[1]}",
        f"{NAME}: old/clara is not in b",
        "other: does not ask the same in both",
    ]


def test_systems_of_other_names(directories):
    within = compare(directories[0], directories[0], {"m/clara": "m/no_memory"}, resamples=200)
    found = row(within, NAME, "m/clara", "exact_match")
    assert found["other"] == "m/no_memory" and found["mean"] == 0.125 - 0.25
    models = compare(directories[0], directories[1], {"old": "m"}, resamples=200)
    assert {(entry["system"], entry["other"]) for entry in models["rows"]} == {("old/clara", "m/clara")}
    assert "same: old is not in a" in models["notes"]
    assert compare(*directories, {"x/clara": "m/clara"})["notes"][1] == f"{NAME}: x/clara is not in a"


def test_as_text(comparison):
    lines = text(comparison, ["f1"]).splitlines()
    assert lines[1].split()[:3] == ["metric", "cases", "a"]
    assert lines[2].split()[:7] == [f"{NAME}:", "m/clara", "f1", "6", "33.3", "66.7", "+33.3"]
    assert (
        lines[5] == "p (Holm) allows for all comparisons of a metric, 3 at most." and lines[6:] == comparison["notes"]
    )
    assert text(compare(*map(str, (comparison["a"], comparison["a"])), {"x/y": "z/y"})).count("is not in a") == 3


def test_no_directory_of_an_evaluation(tmp_path, directories):
    with pytest.raises(ClaraError, match=r"suites\.json: does not exist; .* evaluate corpus cannot be compared"):
        compare(directories[0], tmp_path)
