"""Metrics of a run in an experiment tracker: each row once, whatever is killed, repeated or cut off meanwhile."""

import json
import math
import os
import signal
import struct
import sys
import threading

import pytest

from clara_jax import command, track
from clara_jax.errors import ClaraError
from clara_jax.training import trackers
from clara_jax.training.metrics import MetricWriter
from clara_jax.training.run_directory import write_json
from clara_jax.training.trackers import MetricExport

CONFIG = {
    "model": {"base": "smollm2", "precision": "float32"},
    "mesh": [1, 1],
    "stages": [{"name": "scp", "optimizer": {"steps": 6}}, {"name": "instruct", "optimizer": {"steps": 4}}],
}
GOODPUT = {"seconds": {"steps": 7.5, "lost": 1.0}, "wall": 10.0, "goodput": 0.75, "processes": []}


class Run:
    """A run directory whose training is played: two stages of six and four steps, with an evaluation after each two."""

    STAGES = {"scp": 6, "instruct": 4}

    def __init__(self, path):
        self.path, self.writer, self.cut = path, None, 0
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", CONFIG)
        self.log = {"starts": [{"versions": {"jax": "0.10"}, "device": "cpu", "git": {"commit": "abc"}, "devices": 1}]}
        write_json(path / "run.json", self.log)

    def train(self, stage, first, last, speed=100.0):
        """Write the rows of steps, as a process that goes on after ``first`` steps does."""
        with MetricWriter(self.path / "metrics.jsonl", keep_bytes=self.cut or None) as writer:
            self.cut = 0
            for step in range(first, last + 1):
                if step % 2 == 0:
                    self.here = writer.sync()
                    writer.write({"stage": stage, "step": step, "eval_f1": step / 10, "eval_recall@1": 0.5})
                if step < last:
                    loss = math.nan if step == 3 else 1 / (1 + step)
                    row = {"stage": stage, "step": step, "loss": loss, "grad_norm/lora/generator": 2.0, "tokens": 100}
                    writer.write(row | {"tokens_per_second": None if step == first else speed})
            if last == self.STAGES[stage]:
                summary = {"stage": stage, "steps": last, "seconds": 1.5, "held_out_f1": [0.0, 0.6], "finished": True}
                writer.write(summary)

    def finish(self):
        write_json(self.path / "goodput.json", GOODPUT)
        write_json(self.path / "run.json", self.log | {"finished": {"fingerprint": "f"}})


class Fake:
    """A tracker that keeps what it is sent, by its runs' ids."""

    runs: dict = {}
    failing = None

    def __init__(self, workdir, project, name, id, parameters):
        self.run = self.runs.setdefault(id, {"project": project, "name": name, "rows": [], "closed": []})
        self.run["parameters"] = parameters

    def log(self, rows):
        if self.failing:
            raise self.failing
        self.run["rows"] += rows

    def close(self, finished):
        self.run["closed"].append(finished)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(trackers, "TRACKERS", dict(trackers.TRACKERS, wandb=Fake))
    monkeypatch.setattr(Fake, "runs", {})
    monkeypatch.setattr(Fake, "failing", None)
    return Fake


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "first")


def send(run, **options):
    with MetricExport(run.path, "wandb", "clara", **options) as export:
        return export.update()


def sent(fake):
    """The one run's values by (name, step)."""
    (only,) = fake.runs.values()
    values = [(name, step, value) for step, _, _, row in only["rows"] for name, value in row.items()]
    assert len(values) == len({(name, step) for name, step, _ in values})  # nothing twice
    return {(name, step): value for name, step, value in values}


def test_every_row_is_sent_once(run, fake):
    run.train("scp", 0, 4)
    assert send(run) == 7 and send(run) == 0
    run.train("scp", 5, 6)  # the same process of training, seen later
    run.train("instruct", 0, 4)
    run.finish()
    assert send(run) == 3 + 8 + 1 and send(run) == 0
    values = sent(fake)
    assert [values["scp/loss", step] for step in (0, 1, 2, 5)] == [1, 1 / 2, 1 / 3, 1 / 6]
    assert ("scp/loss", 3) not in values and ("scp/tokens", 3) in values  # it was not a number
    assert values["instruct/loss", 6] == 1  # steps of the whole run
    assert values["scp/eval_recall_at_1", 6] == 0.5 and values["scp/grad_norm/lora/generator", 0] == 2
    assert (values["scp/held_out_f1_before", 6], values["scp/held_out_f1_after", 6]) == (0, 0.6)
    assert values["goodput/goodput", 10] == 0.75 and values["goodput/lost_seconds", 10] == 1
    (only,) = fake.runs.values()
    assert [row.stage_step for row in only["rows"] if row.step == 6 and row.stage == "instruct"] == [0, 0]
    assert (only["project"], only["name"]) == ("clara", "first") and only["closed"] == [False, False, True, True]
    parameters = only["parameters"]
    assert parameters["scp.optimizer.steps"] == 6 and parameters["model.base"] == "smollm2"
    assert parameters["mesh"] == "[1, 1]" and parameters["run.git.commit"] == "abc"


def test_steps_that_training_repeats_are_not_sent_again(run, fake):
    run.train("scp", 0, 4)
    send(run)
    before = sent(fake)
    # Killed, and begun again from a checkpoint after two steps: the file is cut, and its later lines have other times.
    lines = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    run.cut = len(b"".join(lines[:3]))
    run.train("scp", 2, 3, speed=33333.0)
    assert send(run) == 0
    run.train("scp", 4, 6)
    assert send(run) > 0
    after = sent(fake)
    assert after.items() >= before.items() and after["scp/loss", 5] == 1 / 6


def test_what_the_tracker_did_not_take_is_sent_again(run, fake, monkeypatch):
    run.train("scp", 0, 6)
    monkeypatch.setenv("WANDB_API_KEY", "sesame-open")
    monkeypatch.setattr(fake, "failing", ConnectionError("no\nroute for sesame-open to http://me:word@host"))
    message = r"ConnectionError: no route for \[redacted\] to http://\[redacted\]@host; what was sent is noted"
    with pytest.raises(ClaraError, match=f"wandb:clara/first: {message}"):
        send(run)
    monkeypatch.setattr(fake, "failing", None)
    monkeypatch.setattr(trackers, "BATCH", 4)
    assert send(run) == 11 and len(fake.runs) == 1
    sent(fake)


def test_a_line_that_is_not_whole_waits_and_a_damaged_one_is_named(run, fake):
    run.train("scp", 0, 2)
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with MetricExport(run.path, "wandb", "clara") as export:
        assert export.update() == 3
        path.write_bytes(whole)
        assert export.update() == 1
        with open(path, "ab") as file:
            file.write(b"[3]\n")
        with pytest.raises(ClaraError, match="metrics.jsonl: not a JSON object"):
            export.update()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"stage": "scp", "step": "nan"}', "a row of scp has no whole number of steps, but nan"),
        ('{"stage": "scp", "step": null}', "but None"),
        ('{"stage": "scp", "step": true}', "but True"),
        ('{"stage": "scp", "finished": true}', "but None"),
        ("[" * 100_000, "not a JSON object"),
        ("\0\0\0", "not a JSON object"),
        (b'{"stage": "\xff"}'.decode("latin-1"), "not a JSON object"),
    ],
)
def test_a_row_that_no_training_writes_is_one_line(run, fake, line, message):
    (run.path / "metrics.jsonl").write_bytes(f"{line}\n".encode("latin-1"))
    with pytest.raises(ClaraError, match=message):
        send(run)


def test_a_number_beyond_all_floats_is_left_out(run, fake):
    (run.path / "metrics.jsonl").write_text(f'{{"stage": "scp", "step": 1, "loss": {"9" * 400}, "tokens": 3}}\n')
    assert send(run) == 1 and sent(fake) == {("scp/tokens", 1): 3}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("trackers.json", '{"wandb:clara/first": 5}', "trackers.json: is damaged; delete it, and all rows are sent"),
        ("trackers.json", '{"wandb:clara/first": {"id": "a"}}', "trackers.json: is damaged"),
        ("trackers.json", '{"wandb:clara/first": {"id": "a", "stages": {"scp": {}}}}', "trackers.json: is damaged"),
        ("goodput.json", '{"processes": []}', "goodput.json: is no record of goodput; delete it"),
    ],
)
def test_files_that_hold_something_else_are_one_line(run, fake, name, content, message):
    run.train("scp", 0, 6)
    run.finish()
    (run.path / name).write_text(content)
    with pytest.raises(ClaraError, match=message):
        send(run)


def test_starts_that_cannot_be_read_are_no_parameters(run, fake):
    for starts in ([1], {"a": 1}, []):
        write_json(run.path / "run.json", {"starts": starts})
        send(run)
    (only,) = fake.runs.values()
    assert not any(name.startswith("run.") for name in only["parameters"])


def test_a_directory_that_cannot_be_written_is_one_line(run, fake):
    (run.path / ".wandb.lock").mkdir()  # where a file would have to be
    with pytest.raises(ClaraError, match="how far wandb is cannot be noted there: Is a directory"):
        send(run)


@pytest.mark.parametrize("seconds", ["nan", "inf", "0"])
def test_seconds_that_nobody_can_wait(run, monkeypatch, seconds):
    monkeypatch.setattr(sys, "argv", ["track", str(run.path), "--to", "wandb", "--follow", "--every", seconds])
    with pytest.raises(ClaraError, match="--every: .* must be above 0, and at most 86400"):
        track.main()


def test_ctrl_c_ends_what_waits_for_a_tracker(run, fake, monkeypatch):
    """At once where nothing is followed; else the first one ends it when it may, and the second one now."""

    def waiting(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run.train("scp", 0, 2)
    monkeypatch.setattr(fake, "log", waiting)
    for option in ([], ["--follow"]):
        monkeypatch.setattr(sys, "argv", ["track", str(run.path), "--to", "wandb", *option])
        try:
            with pytest.raises(KeyboardInterrupt):
                track.main()
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_other_runs_and_other_names_are_apart(run, fake, tmp_path):
    run.train("scp", 0, 2)
    assert send(run) == 4 and send(run, name="other") == 4 and len(fake.runs) == 2
    with pytest.raises(ClaraError, match="holds no config.json; name the directory of a training run"):
        MetricExport(tmp_path, "wandb", "clara")
    with MetricExport(run.path, "wandb", "clara"), pytest.raises(ClaraError, match="another process sends this run"):
        MetricExport(run.path, "wandb", "clara")


def test_a_run_is_followed_until_it_is_finished(run, fake, monkeypatch, capsys):
    def train():
        run.train("scp", 0, 6)
        run.train("instruct", 0, 4)
        run.finish()

    monkeypatch.setattr(track.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["track", str(run.path), "--to", "wandb", "--follow", "--every", "0.05"])
    threading.Timer(0.3, train).start()
    track.main()
    assert "20 new rows; the run is finished" in capsys.readouterr().out.splitlines()[-1]
    assert ("goodput/goodput", 10) in sent(fake)


def test_a_tracker_that_is_not_installed_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(sys, "argv", ["track", str(run.path), "--to", "trackio"])
    with pytest.raises(SystemExit):
        command.run(track.main, compiles=False)
    assert "trackio is not installed; pip install 'clara_jax[trackio]'" in capsys.readouterr().err


# --- the real packages, each in a mode without a network ---


def whole(run, to, project="clara"):
    """Send a run in three calls, between which its training is killed and repeats steps."""
    run.train("scp", 0, 4)
    counts = [export(run, to, project)]
    lines = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    run.cut = len(b"".join(lines[:3]))
    run.train("scp", 2, 6)
    run.train("instruct", 0, 4)
    counts.append(export(run, to, project))
    run.finish()
    counts.append(export(run, to, project))
    assert counts[2] == 1 and export(run, to, project) == 0
    return counts


def export(run, to, project):
    with MetricExport(run.path, to, project) as opened:
        return opened.update()


@pytest.mark.slow
def test_mlflow(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    whole(run, "mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("clara").experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert found.data.params["scp.optimizer.steps"] == "6" and found.data.params["run.git.commit"] == "abc"
    losses = client.get_metric_history(found.info.run_id, "scp/loss")
    assert [(one.step, one.value) for one in losses] == [(s, 1 / (1 + s)) for s in (0, 1, 2, 4, 5)]
    recalls = client.get_metric_history(found.info.run_id, "instruct/eval_recall_at_1")
    assert [one.step for one in recalls] == [6, 8, 10]
    assert found.data.metrics["goodput/goodput"] == 0.75
    print(f"\nmlflow {mlflow.__version__}")


def leveldb_log(content):
    """Yield the records of a .wandb file: LevelDB's log format, after a header of seven bytes."""
    place, parts = 7, []
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)  # 1 whole, 2 first, 3 middle, 4 last
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_offline(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    whole(run, "wandb")
    from wandb.proto import wandb_internal_pb2

    rows, ids, config = {}, set(), {}
    for path in sorted(run.path.glob("wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_log(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                for item in record.run.config.update:
                    config[item.key or item.nested_key[0]] = item.value_json
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in row.items():
                    if not name.startswith("_"):
                        assert rows.setdefault((name, row["_step"]), value) == value
    assert len(ids) == 1 and json.loads(config["scp.optimizer.steps"]) == 6
    assert {step: rows["scp/loss", step] for step in range(6) if step != 3} == {s: 1 / (1 + s) for s in (0, 1, 2, 4, 5)}
    assert rows["instruct/step", 9] == 3 and rows["goodput/goodput", 10] == 0.75
    print(f"\nwandb {wandb.__version__}")


@pytest.mark.slow
def test_trackio(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    whole(run, "trackio", f"clara{os.getpid()}")
    logs = SQLiteStorage.get_logs(f"clara{os.getpid()}", "first")
    losses = [(row["step"], row["scp/loss"]) for row in logs if "scp/loss" in row]
    assert losses == [(s, 1 / (1 + s)) for s in (0, 1, 2, 4, 5)]
    assert any(row.get("goodput/goodput") == 0.75 for row in logs)
    print(f"\ntrackio {trackio.__version__}")
