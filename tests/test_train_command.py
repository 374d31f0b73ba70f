"""The train command: stages in order on a tiny base, what it leaves behind, and one clear line for every mistake."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.training.metrics import read_metrics
from tests.commands import run_train
from tests.locations import ROOT
from tests.tiny import write_base, write_place, write_records

CONFIG = """
from clara_jax.configs import common

def get_config(arg=None):
    args = common.parse_arg(arg, base={base!r}, data={data!r}, steps=12)
    optimizer = dict(steps=args.steps, batch_size=8, accumulate=2, learning_rate=1e-2, warmup=0.1)

    def stage(name, **fields):
        path = (f"{{args.data}}/{{name}}.jsonl",)
        shared = dict(data=dict(train=path), optimizer=optimizer, evaluation=dict(data=path, answers=0))
        return common.merged(shared, fields)

    topk = dict(candidates=4, k=2)
    return common.run(
        dict(
            scp=stage("scp"),
            instruct=stage("instruct", topk=dict(k=2)),
            retrieval=stage("retrieval", topk=topk),
            end_to_end=stage("end_to_end", topk=topk, evaluation=dict(answers=8, gradients=True)),
        ),
        model=dict(base=args.base, precision="float32"),
        clara=dict(doc_max_length=64, compress_rate=16, lora_rank=8, max_length=256),
        mesh=(1, 1),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, records and a configuration."""
    return write_place(tmp_path_factory.mktemp("place"), CONFIG)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The commands take all devices; tests have eight fake ones."""
    import jax

    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *args: devices[:1])


@pytest.fixture(scope="module")
def finished(place):
    """A whole run, through the real command line."""
    env_code = "import sys; sys.argv = sys.argv[1:]; from clara_jax import command, train; command.run(train.main)"
    arguments = ["--config", f"{place}/config.py", "--config.reporting.profile=1,3", "--workdir", f"{place}/run"]
    out = subprocess.run(
        [sys.executable, "-c", env_code, "train", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # compiles much, runs little
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    return place / "run", out


def test_a_run_through_all_stages(finished):
    run, out = finished
    rows = read_metrics(run / "metrics.jsonl")
    for stage in ("scp", "instruct", "retrieval", "end_to_end"):
        steps = [row for row in rows if row["stage"] == stage and "loss" in row]
        assert [row["step"] for row in steps] == list(range(12))
        assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["learning_rate"] > 0 for row in steps)
        summary = next(row for row in rows if row["stage"] == stage and row.get("finished"))
        assert summary["compilations"] == 1
        before, after = summary["held_out_loss"]
        assert after < before, stage
        assert np.mean([row["loss"] for row in steps[-4:]]) < np.mean([row["loss"] for row in steps[:4]]), stage
    assert json.loads((run / "config.json").read_text())["stages"][0]["name"] == "scp"
    assert "tokens/s" in out.stderr and "end_to_end 12/12" in out.stderr


def checkpoints(run, mesh):
    """The models that the stages left, in order."""
    from clara_jax.checkpoints import opening

    return [opening.load(path, mesh) for path in sorted((run / "checkpoints").iterdir())]


def changed(before, after):
    """Subtrees in which two models differ."""
    from clara_jax.method.parameters import flatten

    one, other = (
        {path: np.asarray(leaf) for path, leaf in flatten(bundle.params).items()} for bundle in (before, after)
    )
    return {"/".join(path.split("/")[:2]) for path in one if not np.array_equal(one[path], other[path])}


def test_a_stage_changes_what_it_trains_and_nothing_else(finished, mesh):
    run, _ = finished
    opened = checkpoints(run, mesh)
    found = [changed(*pair) for pair in zip(opened, opened[1:], strict=False)]
    assert found[0] == {"lora/compressor", "lora/generator", "tokens/memory"}
    assert found[1] == {"lora/query_reasoner"}
    assert found[2] == {"lora/query_reasoner", "lora/generator"}
    assert len({bundle.fingerprint() for bundle in opened}) == 4


def test_a_checkpoint_opens_and_answers(finished, mesh):
    run, _ = finished
    clara = Clara.load(run, mesh=mesh, batch_size=4)
    documents = [["Ada number 0 was born in Rouen.", "Rollo number 1 was born in Lima."]]
    (answer,) = clara.answer(["Where was Ada number 0 born?"], documents, k=1, max_new_tokens=4)
    assert len(answer.sources) == 1 and answer.sources[0].text in documents[0]


def test_going_on_from_a_checkpoint(finished, place, monkeypatch, capsys):
    run, _ = finished
    again = (
        "--config",
        f"{place}/config.py:steps=2",
        "--config.stages=('end_to_end',)",
        f"--config.initial_checkpoint={run}",
    )
    assert run_train(monkeypatch, *again, "--workdir", place / "again") == 0
    assert "finished" in capsys.readouterr().out
    assert run_train(monkeypatch, *again, "--config.clara.compress_rate=8", "--workdir", place / "other") == 2
    assert "compress_rate" in capsys.readouterr().err


def bad_line(text):
    def change(place):
        good = (place / "data" / "scp.jsonl").read_text().splitlines()
        folder = place / "bad"
        write_records(folder)
        (folder / "scp.jsonl").write_text("\n".join([*good[:2], text, *good[2:]]) + "\n")
        return [f"--config={place}/config.py:data={folder}"]

    return change


def record(**change):
    good = {"data_type": "qa", "question": ["Who?"], "answers": ["Ada"], "docs": ["A text."]}
    return json.dumps({key: value for key, value in (good | change).items() if value is not ...})


def broken_base(change):
    def arguments(place):
        change(write_base(place / "broken_base"))
        return [f"--config={place}/config.py:base={place}/broken_base"]

    return arguments


def broken_config(place):
    (place / "broken.py").write_text("def get_config(:\n")
    return [f"--config={place}/broken.py"]


def narrow(base):
    """A configuration that does not fit the weights."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))


def no_template(base):
    path = next(p for p in (base / "chat_template.jinja", base / "tokenizer_config.json") if p.exists())
    if path.suffix == ".jinja":
        path.unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))


MISTAKES = {
    "no config": (lambda p: [], "--config"),
    "missing config": (lambda p: [f"--config={p}/nowhere.py"], "nowhere.py"),
    "config that is no program": (broken_config, "broken.py"),
    "unknown config argument": (lambda p: [f"--config={p}/config.py:stepz=3"], "steps"),
    "unknown field": (
        lambda p: [f"--config={p}/config.py", "--config.scp.learning_rat=1"],
        "mean scp.optimizer.learning_rate?",
    ),
    "unknown field of a group": (
        lambda p: [f"--config={p}/config.py", "--config.scp.optimizer.learning_rat=1"],
        "no field scp.optimizer.learning_rat; did you mean learning_rate?",
    ),
    "value of another type": (
        lambda p: [f"--config={p}/config.py", "--config.scp.optimizer.steps=many"],
        "config.scp.optimizer.steps",
    ),
    "stage that is not trained": (
        lambda p: [f"--config={p}/config.py", "--config.pretraining.steps=1"],
        "no field pretraining",
    ),
    "missing data": (lambda p: [f"--config={p}/config.py:data={p}/none"], "none/scp.jsonl"),
    "malformed line": (bad_line('{"data_type": "qa",'), "scp.jsonl:3"),
    "missing field": (bad_line(record(docs=...)), 'scp.jsonl:3: "docs"'),
    "empty field": (bad_line(record(question=[])), 'scp.jsonl:3: "question"'),
    "wrong type": (bad_line(record(docs="text")), 'scp.jsonl:3: "docs"'),
    "no answers": (bad_line(record(answers=[])), 'scp.jsonl:3: "answers"'),
    "empty document": (bad_line(record(docs=[""])), 'scp.jsonl:3: "docs"'),
    "no documents": (bad_line(record(docs=[])), 'scp.jsonl:3: "docs"'),
    "position out of range": (bad_line(record(pos_index=[1])), 'scp.jsonl:3: "pos_index"'),
    "missing base": (lambda p: [f"--config={p}/config.py:base={p}/nobase"], "nobase"),
    "unreadable base": (broken_base(lambda b: (b / "model.safetensors").write_bytes(b"junk")), "model.safetensors"),
    "base config": (broken_base(lambda b: (b / "config.json").write_text("{")), "config.json"),
    "architecture": (broken_base(lambda b: write_base(b, model_type="gpt2")), "gpt2"),
    "no chat template": (broken_base(no_template), "chat template"),
    "shape of the base": (broken_base(narrow), "gate_proj"),
    "compress rate": (lambda p: [f"--config={p}/config.py", "--config.clara.compress_rate=24"], "compress_rate"),
    "mesh": (lambda p: [f"--config={p}/config.py", "--config.mesh=3,1"], "mesh"),
    "checkpoint that is none": (
        lambda p: [f"--config={p}/config.py", f"--config.initial_checkpoint={p}"],
        "checkpoint",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(name, place, monkeypatch, capsys, tmp_path):
    arguments, expected = MISTAKES[name]
    code = run_train(monkeypatch, *arguments(place), "--workdir", tmp_path / "run")
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(error) == 1 and expected in error[0], error
    assert not (tmp_path / "run").exists(), "nothing half-written stays"


def test_a_directory_with_another_run_is_kept(finished, place, monkeypatch, capsys):
    run, _ = finished
    before = (run / "metrics.jsonl").read_bytes()
    changes = ("--config.scp.optimizer.batch_size=16", "--config.stages=('scp','instruct')")
    for change in (*changes, "--config.clara.lora_rank=4"):
        assert run_train(monkeypatch, "--config", f"{place}/config.py", change, "--workdir", run) == 2
        error = capsys.readouterr().err
        assert change.removeprefix("--").partition("=")[0] in error and "begun with" in error
    free = ["--config.keep=7", "--config.scp.save_every=5", "--noconfig.progress"]
    assert run_train(monkeypatch, "--config", f"{place}/config.py", *free, "--workdir", run) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and "config.scp.save_every is now config.scp.saving.every; the old name" in warnings[1]
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_explains_itself(finished):
    run, out = finished
    log = json.loads((run / "run.json").read_text())
    (began,) = log["starts"]
    assert began["versions"]["jax"] and began["command"] and log["finished"]["fingerprint"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((run / "tensorboard").iterdir())
    rows = read_metrics(run / "metrics.jsonl")
    evaluated = [row for row in rows if row["stage"] == "end_to_end" and "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [0, 12]
    names = ("exact_match", "f1", "recall@1", "ce_no_memory", "exact_match_no_memory")
    for name in (*names, "gradient_probability", "gradient_representation", "gradient_cosine"):
        assert np.isfinite(evaluated[-1][f"eval_{name}"]), name
    assert "Question: " in out.stdout and "(reference: " in out.stdout and out.stdout.count("source 1") == 3


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_steps_that_are_not_finite(policy, place, monkeypatch, capsys, tmp_path):
    run = tmp_path / "run"
    arguments = [
        f"--config={place}/config.py:steps=4",
        "--config.stages=scp",
        "--config.scp.optimizer.learning_rate=1e30",
    ]
    code = run_train(monkeypatch, *arguments, f"--config.non_finite={policy}", "--workdir", run)
    error = capsys.readouterr().err
    files = list(run.glob("non_finite-scp-*.json"))
    if policy == "stop":
        assert code == 2 and len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
        (path,) = files
        assert len(json.loads(path.read_text())["records"]) == 8 and path.name in error
    else:
        steps = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
        assert code == 0 and not files and "the batch is skipped, 3 so far" in error
        assert [row["skipped"] for row in steps] == [0, 1, 2, 3]


def test_lines_that_are_no_records_can_be_left_out(place, monkeypatch, capsys, tmp_path):
    (data,) = bad_line('{"data_type": "qa",')(place)
    arguments = [data.replace(":data", ":steps=2,data"), "--config.stages=scp", "--config.on_error=skip"]
    arguments += ["--config.scp.evaluation.data=()", "--config.scp.optimizer.accumulate=1"]
    run = tmp_path / "run"
    assert run_train(monkeypatch, *arguments, "--workdir", run) == 0
    assert f"lines of data files that are no records, left out: 1, see {run}" in capsys.readouterr().err
    rows = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition("/")[2] for row in rows] == ["scp.jsonl:3"]
    assert [row["rejected"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row] == [1, 1]
    assert run_train(monkeypatch, *arguments, "--config.on_error=ignore", "--workdir", run) == 2
    assert "config.on_error is 'ignore'; it must be one of stop, skip" in capsys.readouterr().err


def test_documents_as_text(place, mesh, monkeypatch, capsys, tmp_path):
    """Only the generator learns, and no memory is measured or shown."""
    arguments = [f"--config={place}/config.py:steps=6", "--config.stages=('scp','end_to_end')"]
    arguments += [f"--config.{stage}.data.documents=text" for stage in ("scp", "end_to_end")]
    arguments += ["--config.end_to_end.evaluation.gradients=False", "--config.reporting.require_progress=True"]
    run = tmp_path / "run"
    assert run_train(monkeypatch, *arguments, "--workdir", run) == 0
    out = capsys.readouterr().out
    assert "finished: 2 stage(s)" in out and "Question: " not in out
    rows = read_metrics(run / "metrics.jsonl")
    names = {name for row in rows for name in row}
    assert {"eval_ce", "eval_exact_match"} <= names
    assert not [name for name in names if "mse" in name or "recall" in name or name.endswith("_memory")]
    before, after = checkpoints(run, mesh)
    assert changed(before, after) == {"lora/generator"}


def test_losses_that_do_not_fall_can_be_an_error(place, monkeypatch, capsys, tmp_path):
    arguments = [f"--config={place}/config.py:steps=4", "--config.stages=scp"]
    arguments += ["--config.scp.optimizer.learning_rate=1e-30", "--config.reporting.require_progress=True"]
    assert run_train(monkeypatch, *arguments, "--workdir", tmp_path / "run") == 2
    assert "loss did not fall" in capsys.readouterr().err


def test_a_profile_is_written(finished):
    run, _ = finished
    assert any(path.suffix == ".pb" for path in (run / "profile").rglob("*"))


def test_a_profile_that_would_crash_is_refused(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("clara_jax.training.profile.platforms", lambda: "")
    arguments = [f"--config={place}/config.py", "--config.reporting.profile=1,3", "--workdir", tmp_path / "run"]
    assert run_train(monkeypatch, *arguments) == 2
    assert "set JAX_PLATFORMS=cpu in the environment" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_teaches_and_needs_no_jax():
    out = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clara_jax.train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0 and "--workdir" in out.stdout and "--config.scp.optimizer.learning_rate" in out.stdout
    assert " jax\n" not in out.stderr


def test_a_run_keeps_the_precision_that_auto_gave_it(place, monkeypatch, capsys, tmp_path):
    """Begun where the processor has the instructions, gone on with where it has none."""
    from clara_jax.model import precision

    arguments = [f"--config={place}/config.py:steps=2", "--config.model.precision=auto", "--workdir", tmp_path / "run"]
    arguments += ["--config.stages=scp"]
    monkeypatch.setattr(precision, "has_instructions", lambda: True)
    assert run_train(monkeypatch, *arguments) == 0, capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    assert config["model"]["precision"] == json.loads((checkpoint / "clara.json").read_text())["precision"] == "mixed"
    assert Clara.load(tmp_path / "run").bundle.model.precision == "mixed"
    monkeypatch.setattr(precision, "has_instructions", lambda: False)
    capsys.readouterr()
    assert run_train(monkeypatch, *arguments) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert run_train(monkeypatch, *arguments, "--config.model.precision=float32") == 2
    assert "config.model.precision" in capsys.readouterr().err
