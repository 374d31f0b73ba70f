"""Metrics survive a crash, a resume and odd numbers, as lines and for TensorBoard; the progress display says what
happened and no more often than asked."""

import io
import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.training.metrics import MetricWriter, Progress, Throughput, device_memory, read_metrics


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_are_json_and_flushed(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = MetricWriter(path)
    writer.write(dict(step=np.int64(1), loss=jnp.float32(2.5), stage="scp", skipped=None))
    writer.write(dict(step=2, loss=float("nan"), norm=np.float32("inf"), low=-np.inf))
    first, second = path.read_text().splitlines()  # before close
    writer.close()
    assert json.loads(first) == dict(step=1, loss=2.5, stage="scp", skipped=None)
    assert json.loads(second) == dict(step=2, loss="nan", norm="inf", low="-inf")
    row = read_metrics(path)[1]
    assert np.isnan(row["loss"]) and row["norm"] == np.inf and row["low"] == -np.inf


def test_appends_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path) as writer:
        writer.write(dict(step=1))
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    with MetricWriter(path) as writer:
        writer.write(dict(step=2))
    assert read_metrics(path) == [dict(step=1), dict(step=2)]


def test_read_metrics_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n[]\n')
    with pytest.raises(ClaraError, match=r"metrics\.jsonl:2: not a JSON object"):
        read_metrics(path)
    with pytest.raises(ClaraError, match="cannot read metrics"):
        read_metrics(tmp_path / "none")


def test_a_resumed_writer_cuts_what_is_written_again(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path) as writer:
        writer.write(dict(step=0))
        kept = writer.sync()
        assert kept == path.stat().st_size
        writer.write(dict(step=1))
    with MetricWriter(path, keep_bytes=kept) as writer:
        assert writer.sync() == kept
        writer.write(dict(step=1, again=True))
    assert read_metrics(path) == [dict(step=0), dict(step=1, again=True)]
    assert capsys.readouterr().err == ""
    with MetricWriter(path, keep_bytes=1000) as writer:
        writer.write(dict(step=2))
    assert len(read_metrics(path)) == 3
    assert "metrics.jsonl: rows of earlier steps are missing" in capsys.readouterr().err
    with MetricWriter(path, keep_bytes=0):
        assert read_metrics(path) == []


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="metrics cannot be written: (File exists|Not a directory)"):
        MetricWriter(tmp_path / "file" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    writer._file = open("/dev/full", "wb", buffering=0)
    with pytest.raises(ClaraError, match="metrics cannot be written: No space left"):
        writer.write(dict(step=0))


def scalars(directory):
    """(tag, step) -> value of every scalar in a directory's only event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = directory.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:  # a record: length, its checksum, content, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [((value.tag, event.step), value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert len(dict(found)) == len(found)  # nothing shows twice
    return dict(found)


def test_tensorboard_shows_what_the_file_holds(tmp_path):
    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricWriter(path, events) as writer:
        writer.write({"stage": "scp", "step": 0, "loss": jnp.float32(2.5), "grad_norm/lora/generator": 0.5, "no": None})
        writer.write({"stage": "scp", "step": 1, "loss": float("nan"), "finite": True})
        writer.write({"stage": "scp", "steps": 2, "finished": True})  # no step: nothing to draw
        writer.write({"stage": "end_to_end", "step": 0, "eval_recall@1": 1, "loss": np.float32(0.25)})
        kept = writer.sync()
        expected = {
            ("scp/loss", 0): 2.5,
            ("scp/grad_norm/lora/generator", 0): 0.5,
            ("scp/loss", 1): pytest.approx(np.nan, nan_ok=True),
            ("end_to_end/eval_recall@1", 0): 1,
            ("end_to_end/loss", 0): 0.25,
        }
        assert scalars(events) == expected  # before close
        writer.write({"stage": "end_to_end", "step": 1, "loss": 8.0})
    assert scalars(events)["end_to_end/loss", 1] == 8.0
    (written,) = events.iterdir()
    written.rename(events / "events.out.tfevents.1000000000.host")  # a file is named by the second it is made in
    with MetricWriter(path, events, kept) as writer:
        assert scalars(events) == expected
        writer.write({"stage": "end_to_end", "step": 1, "loss": 4.0})
    assert scalars(events) == expected | {("end_to_end/loss", 1): 4.0}


def test_device_memory_says_what_the_process_and_the_device_hold(monkeypatch):
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats

    held = np.ones(2**25)  # 256 MiB
    monkeypatch.setattr("jax.local_devices", lambda: [Device(peak_bytes_in_use=2**30), Device(peak_bytes_in_use=2**31)])
    memory = device_memory()
    assert memory.keys() == {"host_peak_gib", "device_peak_gib"} and memory["device_peak_gib"] == 2
    assert held.nbytes / 2**30 < memory["host_peak_gib"] < 100
    monkeypatch.setattr("jax.local_devices", lambda: [type("Cpu", (), {"memory_stats": lambda self: None})()])
    assert device_memory().keys() == {"host_peak_gib"}


def test_throughput_is_over_a_window_and_leaves_compilation_out():
    clock = Clock()
    speed = Throughput(window=2, clock=clock)
    clock.now += 60  # compilation
    speed.add(10)
    assert speed.rate is None
    clock.now += 1
    speed.add(100)
    assert speed.rate == 100
    clock.now += 1
    speed.add(100)
    clock.now += 1
    speed.add(400)
    assert speed.rate == 250 and speed.total == 610


def test_lines_where_there_is_no_terminal():
    clock, stream = Clock(), io.StringIO()
    with Progress(10, "scp", stream=stream, seconds=30, clock=clock) as progress:
        for step in range(10):
            clock.now += 10
            progress.update(loss=3.0 - step / 10, tokens=200)
            if step == 4:
                assert progress.seconds_left == pytest.approx(50)
                assert progress.tokens_per_second == pytest.approx(20)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "10/10"]
    assert lines[0] == "scp 1/10  loss 3.0000"
    assert lines[1] == "scp 4/10  loss 2.7000  20 tokens/s  01:00 left"


def test_rates_per_device_and_mfu_where_the_peak_is_known():
    clock, stream = Clock(), io.StringIO()
    with Progress(3, "scp", stream=stream, seconds=0, clock=clock, devices=4, peak_flops=1000) as progress:
        progress.update(tokens=800, flops=99)
        assert progress.rates == {"tokens_per_second": None, "tokens_per_second_per_device": None, "mfu": None}
        for _ in range(2):
            clock.now += 2
            progress.update(tokens=800, flops=3600)
        # 800 tokens and 3,600 operations in two seconds, of four devices that could do 1,000 a second each.
        assert progress.rates == pytest.approx(
            {"tokens_per_second": 400, "tokens_per_second_per_device": 100, "mfu": 0.45}
        )
    assert stream.getvalue().splitlines()[1] == "scp 2/3  400 tokens/s  100 a device  MFU 45.0%  00:02 left"
    unknown = Progress(3, "scp", stream=stream, clock=clock, devices=4)
    assert "mfu" not in unknown.rates and unknown.mfu is None


def test_a_resumed_stage_goes_on_counting():
    clock, stream = Clock(), io.StringIO()
    with Progress(10, "scp", start=7, stream=stream, clock=clock) as progress:
        for _ in range(2):
            clock.now += 10
            progress.update(loss=1.0)
        assert progress.seconds_left == pytest.approx(10)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["8/10"]
    terminal = Terminal()
    with Progress(10, "scp", start=7, stream=terminal, clock=clock) as bar:
        bar.update(loss=1.0)
    assert "7/10" in terminal.getvalue()


def test_an_evaluation_shows_how_far_it_is_only_if_it_takes_long():
    clock, stream, terminal = Clock(), io.StringIO(), Terminal()
    for seconds in (1, 10):
        with Progress(9, "scp evaluation", stream=stream, seconds=30, clock=clock, brief=True) as progress:
            for _ in range(9):
                clock.now += seconds
                progress.update()
    assert stream.getvalue().splitlines() == [
        "scp evaluation 3/9  01:00 left",
        "scp evaluation 6/9  00:30 left",
        "scp evaluation 9/9  00:00 left",
    ]
    with Progress(9, "scp evaluation", stream=terminal, clock=clock, brief=True) as bar:
        bar.update()
    assert "evaluation" not in terminal.getvalue()


def test_bar_on_a_terminal_and_silence():
    terminal, quiet = Terminal(), io.StringIO()
    clock = Clock()
    off = Progress(3, "x", stream=quiet, enabled=False)
    with Progress(3, "instruct", stream=terminal, clock=clock) as bar:
        for _ in range(3):
            clock.now += 2
            bar.update(loss=1.25, tokens=1000)
            off.update(loss=1.25, tokens=1000)
    shown = terminal.getvalue()
    assert "instruct" in shown and "3/3" in shown and "loss 1.2500" in shown and "500 tokens/s" in shown
    assert quiet.getvalue() == ""
