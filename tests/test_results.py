"""What the Python API returns: memories that outlive the process, answers that are streamed, and readable values."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import clara_jax
from clara_jax.errors import ClaraError
from clara_jax.inference.requests import Request
from clara_jax.results import Answer, AnswerStream, Hit, Memories, RagAnswer, RetrievedContext
from tests.serving.fakes import FakeEngine


def some(count=3, dtype=ml_dtypes.bfloat16):
    array = np.arange(count * 8).reshape(count, 2, 4).astype(dtype)
    ids = tuple(f"d{i // 2}#{i % 2}" for i in range(count))
    return Memories(
        ids, array, tuple(f"text {i} ✓" for i in range(count)), "f" * 64, tuple(f"d{i // 2}" for i in range(count))
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("count", [0, 3])
def test_memories_are_read_as_they_were_written(tmp_path, dtype, count):
    path, memories = tmp_path / "m.safetensors", some(count, dtype)
    memories.save(path)
    found = Memories.load(path, "f" * 64)
    assert (found.ids, found.texts, found.documents) == (memories.ids, memories.texts, memories.documents)
    assert found.fingerprint == memories.fingerprint and found.array.dtype == dtype
    np.testing.assert_array_equal(found.array, memories.array)


def test_memories_of_another_model_are_refused_by_the_file(tmp_path):
    some().save(tmp_path / "m")
    with pytest.raises(
        ClaraError, match=r"m: its memories were made by another model \(fingerprint ffffffffffff, not 0000"
    ):
        Memories.load(tmp_path / "m", "0" * 64)
    assert Memories.load(tmp_path / "m").fingerprint == "f" * 64


def test_a_file_that_save_has_not_written_is_refused_in_one_line(tmp_path):
    path, about = tmp_path / "m", {"format": "clara_jax.memories", "version": "1", "fingerprint": "f"}
    good = {name: np.frombuffer(json.dumps(["a"]).encode(), np.uint8) for name in ("ids", "texts", "documents")}
    good["memories"] = np.zeros((1, 2, 4), np.float32)
    for tensors, metadata, said in (
        (good, None, "holds no memories"),
        (good, about | {"version": "2"}, "version '2'"),
        ({k: v for k, v in good.items() if k != "texts"}, about, "is damaged"),
        (good | {"ids": np.frombuffer(b"[5]", np.uint8)}, about, "no list of texts"),
        (good | {"ids": np.frombuffer(b"[", np.uint8)}, about, "is damaged"),
        (good | {"memories": np.zeros((2, 2, 4), np.float32)}, about, "shape"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ClaraError, match=said) as caught:
            Memories.load(path)
        assert str(caught.value).startswith(str(path))
    path.write_bytes(b"no safetensors")
    with pytest.raises(ClaraError, match="not a safetensors file"):
        Memories.load(path)
    with pytest.raises(ClaraError, match="cannot be read"):
        Memories.load(tmp_path / "nowhere")


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    some(1).save(tmp_path / "m")
    monkeypatch.setattr("clara_jax.results.save_file", lambda tensors, path, metadata: path.write_bytes(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        some().save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"] and len(Memories.load(tmp_path / "m")) == 1
    with pytest.raises(ClaraError, match="cannot be written"):
        some().save(tmp_path / "nowhere" / "m")


def stream(text, engine=None, limit=64):
    engine = engine or FakeEngine(2, 0)
    ids = list(text.encode())
    request = Request(ids, [-1] * len(ids), np.zeros((0, 1, 1)))
    return engine, AnswerStream(
        engine, request, lambda ids: bytes(ids).decode("utf-8", "replace"), some().hits([0.5, 0.4, 0.3], [1] * 3)
    )


def test_the_pieces_of_a_stream_are_the_answer():
    text = "the Normans ✓ came 😀 from Rouen"  # characters of several tokens, which fall between two steps
    _, answer = stream(text)
    assert answer.answer is None and [hit.rank for hit in answer.sources] == [1, 2, 3]
    pieces = list(answer)
    assert "".join(pieces) == text == answer.answer.text and len(pieces) > 3 and "\ufffd" not in "".join(pieces)
    assert answer.answer.sources == answer.sources and answer.answer.log_probability == -1
    assert list(answer) == []


def test_a_stream_that_is_left_frees_its_row():
    engine, answer = stream("a long answer that nobody reads to its end")
    assert next(answer) == "a lo"
    answer.close()
    assert list(answer) == [] and answer.answer is None
    engine.step()
    assert not engine.running and engine.ended[0].result.ended == "cancelled"
    engine, answer = stream("another one", engine)
    next(answer)
    del answer
    engine.step()
    assert not engine.running


def test_values_are_readable():
    hit = Hit("d#0", "d", "", "some\n text " * 30, "", -1, -1, 9, 0.5, 1)
    assert repr(hit).startswith("Hit(1. +0.500  d#0  some text some") and len(repr(hit)) < 100
    assert repr(some()) == f"Memories(3 of 2 × 4 bfloat16: 'd0#0', 'd0#1', 'd1#0'; model {'f' * 12})"
    answer = Answer("Rouen", (hit,), (1, 2), -0.25)
    assert repr(answer) == "Answer('Rouen', log_probability -0.25, from 'd#0')"
    context = RetrievedContext("Where?", (hit,), 1, None, 1.0, {}, "Where?")
    assert repr(context) == "RetrievedContext('Where?', 1 hits, reads 'd#0')"
    assert repr(RagAnswer("Rouen", context, (), -0.25, {})) == "RagAnswer('Rouen', log_probability -0.25, from 'd#0')"
    assert repr(RagAnswer(None, context, (), 0.0, {})) == "RagAnswer(no answer, from nothing)"


def test_what_was_found_has_one_class():
    with pytest.warns(DeprecationWarning, match="Source is now clara_jax.results.Hit"):
        assert clara_jax.Source is clara_jax.Hit
