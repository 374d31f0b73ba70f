"""The README's first command, in its short form: from nothing to a trained model, as a user runs it."""

import json
import subprocess
import sys

import pytest

from clara_jax.training.metrics import read_metrics
from tests.locations import ROOT


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_smoke_ci(tmp_path, optimized):
    """The command itself fails where a loss does not fall."""
    run = tmp_path / "smoke"
    out = subprocess.run(
        [sys.executable, "-m", "clara_jax.train", "--config", "configs/smoke.py:ci", "--workdir", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    rows = read_metrics(run / "metrics.jsonl")
    ends = {row["stage"]: row for row in rows if row.get("finished")}
    assert list(ends) == ["scp", "instruct", "end_to_end"]
    for end in ends.values():
        assert end["held_out_loss"][1] < end["held_out_loss"][0] and end["compilations"] == 1
    # A memory that is read: the answers are likelier with their document's than without one.
    assert ends["scp"]["held_out_ce"][1] < 0.95 * ends["scp"]["held_out_ce_no_memory"][1]
    assert {"held_out_recall@1", "held_out_exact_match", "held_out_exact_match_other_memory"} <= set(ends["end_to_end"])
    assert "finished: 3 stage(s)" in out.stdout
    # The documents that were held out, and questions that they answer.
    assert f"--documents {run / 'world' / 'documents.jsonl'}" in out.stdout.splitlines()[-1]
    documents = {line["id"]: line["text"] for line in lines_of(run / "world/documents.jsonl")}
    questions = lines_of(run / "world/questions.jsonl")
    assert len(documents) == 3 * 48 * 8 and len(questions) == 24
    assert all(one["answers"][0] in documents[one["document"]] for one in questions)


@pytest.mark.slow
def test_the_smoke_model_answers_about_its_world(tmp_path):
    """The whole run, then the command that it prints, with every default of answering."""
    run = tmp_path / "smoke"

    def start(module, *words):
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = start("clara_jax.train", "--config", "smoke", "--workdir", str(run)).splitlines()[-1]
    words = said.partition("python -m clara_jax.ask ")[2].split()
    answers = [json.loads(line)["answer"] for line in start("clara_jax.ask", *words, "--json").splitlines()]
    questions = lines_of(run / "world/questions.jsonl")
    right = [answer in one["answers"] for answer, one in zip(answers, questions, strict=True)]
    assert sum(right) >= 0.9 * len(right), list(zip(answers, questions, strict=True))
