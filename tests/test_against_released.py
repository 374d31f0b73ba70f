"""The benchmark against the released code: its logic, and, where that code and its environment are named, all of it
on a tiny model."""

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import against_released, released_driver
from benchmarks.against_released import OURS, RELEASED, Measurements, ReleasedProcess, measure, parse, read, rows, table
from benchmarks.released_rows import ROWS, BenchmarkRow, Inputs
from clara_jax.api import Clara
from clara_jax.checkpoints import exporting, opening
from clara_jax.errors import ClaraError
from clara_jax.method.parameters import flatten
from tests import exports, tiny
from tests.locations import ROOT

CODE, PYTHON = "CLARA_RELEASED_CODE", "CLARA_RELEASED_PYTHON"
COUNTS = {"scp_batch": 2, "batch": 2, "candidates": 3, "k": 2, "new_tokens": 4, "repeats": 1}


def _data(folder, records=3, candidates=3):
    documents = [tiny.document(i) for i in range(24)]
    lines = {"scp": [], "end_to_end": []}
    for i in range(records):
        lines["scp"].append({"data_type": "qa", "question": ["Who?"], "answers": ["Ada"], "docs": [documents[i]]})
        texts = documents[4 * i : 4 * i + candidates]
        asked = f"Where was number {4 * i} born?"
        lines["end_to_end"].append({"question": asked, "docs": texts, "answer": "Oslo", "pos_index": [0]})
    for stage, written in lines.items():
        path = folder / against_released.FILES[stage]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in written))
    return folder


@pytest.fixture
def code(tmp_path):
    """A folder with files where the released code has them; no line of it."""
    for name, text in {
        released_driver.MODEL: "HERE = __file__\n",
        released_driver.BATCHES: "THERE = __file__\n",
    }.items():
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(text)
    return tmp_path / "code"


def _program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class TestArguments:
    def test_what_is_missing_is_named(self, code, tmp_path):
        with pytest.raises(ClaraError, match="nowhere holds no openrlhf/models/modeling_clara.py; name a checkout"):
            parse([f"--released={tmp_path / 'nowhere'}", f"--released-python={sys.executable}"])
        with pytest.raises(ClaraError, match="absent is no program; name the interpreter of an environment"):
            parse([f"--released={code}", f"--released-python={tmp_path / 'absent'}"])
        with pytest.raises(ClaraError, match="--max-new-tokens is 0; it must be at least 1"):
            parse([f"--released={code}", f"--released-python={sys.executable}", "--max-new-tokens=0"])

    def test_records(self, tmp_path):
        with pytest.raises(ClaraError, match="stage1_pretrain_qa.train.jsonl"):
            read(tmp_path, SimpleNamespace(**COUNTS))
        _data(tmp_path)
        found = read(tmp_path, SimpleNamespace(**COUNTS | {"candidates": 2}))
        assert [len(record.documents) for record in found["end_to_end"]] == [2, 2, 2]
        inputs = Inputs(found, SimpleNamespace(**COUNTS), tmp_path)
        assert len({inputs.question(turn) for turn in range(-2, 1)}) == 3  # every turn has another question
        kinds = [type(asked) for _, asked, _, _, _ in (*inputs.as_released("scp"), *inputs.as_released("end_to_end"))]
        assert kinds == [tuple, tuple, str, str]
        with pytest.raises(ClaraError, match="holds 3 records; this run takes 4"):
            read(tmp_path, SimpleNamespace(**COUNTS | {"batch": 4}))
        with pytest.raises(ClaraError, match="3 candidates; 20 are asked for"):
            read(tmp_path, SimpleNamespace(**COUNTS | {"candidates": 20}))


class TestOtherSide:
    def ask(self, python, tmp_path):
        arguments = SimpleNamespace(released_python=python, released=tmp_path, k=2)
        with ReleasedProcess(arguments, tmp_path, 1) as other:
            return other.ask("versions")

    def test_what_ends_it_is_one_line(self, tmp_path):
        python = _program(tmp_path / "python", "echo first >&2; echo no such thing >&2; exit 3")
        with pytest.raises(ClaraError, match="the released side ended, exit code 3: no such thing$"):
            self.ask(python, tmp_path)

    def test_a_missing_package_says_what_to_install(self, tmp_path):
        error = json.dumps({"error": "ModuleNotFoundError: No module named torch"})
        python = _program(tmp_path / "python", f"read line; echo '{error}'")
        with pytest.raises(ClaraError, match="asked for versions: .* torch; .*python -m pip install torch==2.13.0"):
            self.ask(python, tmp_path)

    def test_an_answer(self, tmp_path):
        python = _program(tmp_path / "python", """read line; echo "$line" | sed 's/do/asked/'""")
        assert self.ask(python, tmp_path) == {"asked": "versions"}

    def test_modules_come_from_the_folder_and_their_packages_are_not_imported(self, code, monkeypatch):
        (code / "openrlhf/models/__init__.py").write_text("raise ImportError('needs a GPU')")
        monkeypatch.setattr(sys, "path", list(sys.path))
        before = dict(sys.modules)
        try:
            model, batches = released_driver.load(code)
        finally:
            for name in set(sys.modules) - set(before):
                del sys.modules[name]
        assert (model.HERE, batches.THERE) == (str(code / released_driver.MODEL), str(code / released_driver.BATCHES))


class TestMeasurements:
    def test_turns_alternate_and_go_on_where_they_stopped(self, tmp_path):
        called = []

        def side(name, seconds):
            def call(turn):
                called.append((name, turn))
                if name == "b" and turn == 1 and called.count((name, turn)) == 1 and "again" not in called:
                    raise KeyboardInterrupt
                return {"seconds": seconds + turn, "loss": 1.0}

            return call

        row = BenchmarkRow("step", None, None, lambda one, other: f"{one['loss']} {other['loss']}", warm_up=1)
        sides = {(RELEASED, "float32"): side("a", 10.0), (OURS, "float32"): side("b", 1.0)}
        path = tmp_path / "out.json"
        with pytest.raises(KeyboardInterrupt):
            measure(row, sides, Measurements(path, {"base": "x"}), 2, lambda text: None)
        assert called == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
        called[:] = ["again"]
        found = Measurements(path, {"base": "x"})
        measure(row, sides, found, 2, lambda text: None)
        assert called == ["again", ("a", -1), ("b", -1), ("b", 1)]  # what was measured stays
        assert found.content["seconds"] == {"step": {"released float32": [10.0, 11.0], "ours float32": [1.0, 2.0]}}
        assert found.content["agreement"] == {"step": "1.0 1.0"}
        measure(row, sides, found, 2, lambda text: None)
        assert len(called) == 4  # nothing is left to do
        (line,) = json.loads(path.read_text())["table"]
        assert (line["ratio float32"], line["repeats"]) == (7.0, 2)

    def test_another_runs_file_is_refused(self, tmp_path):
        path = tmp_path / "out.json"
        Measurements(path, {"base": "x"}).save()
        with pytest.raises(ClaraError, match="was measured with base 'x', now it is 'y'; name another --output"):
            Measurements(path, {"base": "y"})
        path.write_text("[]")
        with pytest.raises(ClaraError, match="holds no measurements of this benchmark"):
            Measurements(path, {"base": "x"})

    def test_a_sides_best_is_its_faster_precision(self):
        seconds = {
            "scp": {
                "released float32": [9.0, 8.0, 7.0],
                "released bfloat16": [20.0, 20.0, 21.0],
                "ours float32": [4.0, 4.0, 5.0],
                "ours mixed": [2.0, 2.0, 2.5],
            },
            "compress": {"released float32": [6.0], "ours float32": []},
        }
        first, second = rows(seconds)
        assert (first["ratio float32"], first["ratio best"]) == (2.0, 4.0)
        assert (first["released best precision"], first["ours best precision"]) == ("float32", "mixed")
        assert (second["ratio float32"], second["ours best"]) == (None, None)
        lines = table(seconds).splitlines()
        assert lines[2] == "| scp | 8.00 s | 4.00 s | **2.00** | 8.00 s (float32) | 2.00 s (mixed) | **4.00** |"
        assert lines[3] == "| compress | 6.00 s |  |  | 6.00 s (float32) |  |  |"


@pytest.fixture
def released():
    """The released code and its environment's interpreter, as arguments of the benchmark; skips where they are not."""
    code, python = os.environ.get(CODE), os.environ.get(PYTHON)
    if not code or not python:
        pytest.skip(f"set {CODE} to a checkout of the released code and {PYTHON} to its environment's interpreter")
    return SimpleNamespace(released=code, released_python=python, k=2)


SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SIZES |= dict(rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=2048, hidden_act="silu")
LONGROPE = dict(type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5], long_factor=[2.0, 3.0, 5.0, 8, 12, 17])
PHI3 = dict(model_type="phi3", sliding_window=None, pad_token_id=0)
ARCHITECTURES = {
    "mistral": dict(model_type="mistral", sliding_window=None, tie_word_embeddings=False),
    "llama": dict(model_type="llama", tie_word_embeddings=True),
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True, use_sliding_window=False),
    "qwen3": dict(model_type="qwen3", head_dim=32, tie_word_embeddings=False, use_sliding_window=False),
    "phi3": PHI3 | dict(tie_word_embeddings=False, original_max_position_embeddings=2048),
    "phi4_mini": PHI3
    | dict(tie_word_embeddings=True, partial_rotary_factor=0.75, rope_scaling=LONGROPE)
    | dict(original_max_position_embeddings=1024),
}


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_round_trip_through_the_released_code(released, name, tmp_path, mesh, monkeypatch):
    """Ours, the released format, the released code, the released format, ours: the same memories and parameters."""
    tokenizer, clara = tiny.tokenizer(), exports.SMALL
    if name.startswith("qwen"):  # as theirs: no bos, and special tokens that have no role
        tokenizer.bos_token = None
        tokenizer.add_special_tokens({"extra_special_tokens": ["<s>"]})
        clara = dataclasses.replace(clara, missing_bos="first_special")
    base = opening.from_scratch(SIZES | ARCHITECTURES[name], tokenizer, clara, mesh, "float32")
    bundle = dataclasses.replace(exports.drawn(base), history=({"stage": "end_to_end", "top_k": 2},))
    folder = tmp_path / "one"
    folder.mkdir()
    exporting.export_released(bundle, folder / "checkpoint")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    documents = [tiny.document(i) for i in range(3)]
    with ReleasedProcess(released, folder, 1) as other:
        other.ask("compress", precision="float32", documents=documents, file=str(tmp_path / "memories.npy"))
        other.ask("save", precision="float32", folder=str(tmp_path / "back"))
    np.testing.assert_allclose(np.load(tmp_path / "memories.npy"), Clara(bundle).compress(documents).array, atol=1e-4)
    found = opening.load(tmp_path / "back", mesh, precision="float32")
    assert found.top_k == 2
    ours, theirs = (flatten(one.params) for one in (bundle, found))
    assert set(ours) == set(theirs)
    for path, leaf in ours.items():
        np.testing.assert_array_equal(np.asarray(theirs[path]), np.asarray(leaf), err_msg=path)


@pytest.mark.slow
def test_both_sides_do_the_same_on_a_tiny_model(released, tmp_path):
    # Long enough for the questions that the released code pads to 1,043 positions.
    base = tiny.write_base(tmp_path / "base", max_position_embeddings=2048)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    out = tmp_path / "out.json"
    counts = [f"--{name.replace('_', '-')}={number}" for name, number in COUNTS.items()]
    command = [sys.executable, "-m", "benchmarks.against_released", f"--released={released.released}", f"--base={base}"]
    command += [
        f"--released-python={released.released_python}",
        f"--data={_data(tmp_path / 'data')}",
        f"--output={out}",
        *counts,
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert list(found["seconds"]) == [row.name for row in ROWS]
    assert all(row["ratio float32"] > 0 for row in found["table"])
    for name in ("scp", "end_to_end", "end_to_end, true length"):
        one, other = map(float, re.findall(r"\d+\.\d{5}", found["agreement"][name]))
        assert one == pytest.approx(other, abs=1e-4)
    assert "questions of 1043 positions" in found["agreement"]["end_to_end"]
    assert found["agreement"]["compress"].endswith(" 1.000000")
    assert found["agreement"]["question"] == "the same documents read, the same answer"
