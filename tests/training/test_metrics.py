"""Metrics survive a crash and odd numbers; the progress display says what happened and no more often than asked."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.training.metrics import MetricWriter, Progress, Throughput, read_metrics


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
