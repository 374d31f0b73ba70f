"""Predictions on disk: nothing is lost or repeated, however the process before ended."""

import json

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction, PredictionFile

RANKED = Prediction(
    "a", "Oslo – naïve\n\u2028", (2, 0, 1), (0.5, 0.25, -1.0), (2, 0), 40, 30, 8, 3, "stop", {"first": 1.5}
)
PLAIN = Prediction("b", "")
ONLY_RANKED = Prediction("c", None, (0,), (1.0,))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "outcomes.jsonl"
    file = PredictionFile(path)
    assert file.predictions == {}
    file.append([RANKED, PLAIN])
    file.append([])
    file.append([ONLY_RANKED])
    expected = {prediction.case: prediction for prediction in (RANKED, PLAIN, ONLY_RANKED)}
    assert file.predictions == PredictionFile(path).predictions == expected
    assert list(PredictionFile(path).predictions) == ["a", "b", "c"]
    assert len(path.read_bytes().split(b"\n")) == 4  # a line each, whatever stands in an answer


@pytest.mark.parametrize("left", [1, 10, 0.5, -1])
def test_a_torn_last_line_is_cut_off_and_work_goes_on(tmp_path, left):
    path = tmp_path / "outcomes.jsonl"
    PredictionFile(path).append([RANKED])
    whole = path.read_bytes()
    PredictionFile(path).append([PLAIN])
    last = path.read_bytes()[len(whole) :]
    left = int(left * len(last)) if isinstance(left, float) else left
    path.write_bytes(whole + last[:left])
    file = PredictionFile(path)
    assert file.predictions == {"a": RANKED} and path.read_bytes() == whole
    file.append([PLAIN, ONLY_RANKED])
    assert list(PredictionFile(path).predictions.values()) == [RANKED, PLAIN, ONLY_RANKED]


def test_only_a_torn_line(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    path.write_text('{"case": "a"')
    assert PredictionFile(path).predictions == {} and path.read_bytes() == b""


def test_a_line_cut_within_a_character(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    line = json.dumps({"case": "a", "answer": "–"}, ensure_ascii=False).encode()
    path.write_bytes(line + b"\n" + line[: line.index("–".encode()) + 1])
    assert list(PredictionFile(path).predictions) == ["a"]


@pytest.mark.parametrize(
    "line", ["{", "", "[1]", "3", "null", '{"answer": "x"}', '{"case": "x", "colour": 1}', '{"case": [1]}']
)
def test_a_line_that_is_no_prediction(tmp_path, line):
    path = tmp_path / "outcomes.jsonl"
    path.write_text(f'{{"case": "a"}}\n{line}\n{{"case": "b"}}\n')
    with pytest.raises(ClaraError, match=r"outcomes\.jsonl:2: is no prediction; remove the file"):
        PredictionFile(path)


def test_a_case_twice(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    path.write_text('{"case": "a"}\n{"case": "b"}\n{"case": "a"}\n')
    with pytest.raises(ClaraError, match=r"outcomes\.jsonl:3: the case 'a' is there twice"):
        PredictionFile(path)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="cannot be opened"):
        PredictionFile(tmp_path / "file" / "outcomes.jsonl")
    file = PredictionFile(tmp_path / "gone" / "outcomes.jsonl")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ClaraError, match="cannot be written"):
        file.append([PLAIN])
    assert file.predictions == {}
