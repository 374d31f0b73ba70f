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
    """The whole run, then the command that it prints, with every default of answering; and with both searches."""
    run = tmp_path / "smoke"

    def start(module, *words):
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = start("clara_jax.train", "--config", "smoke", "--workdir", str(run)).splitlines()[-1]
    words = said.partition("python -m clara_jax.ask ")[2].split()
    questions = lines_of(run / "world/questions.jsonl")

    def ask(*how):
        """Return of each question whether its document was found first, and whether its answer is right."""
        answers = [json.loads(line) for line in start("clara_jax.ask", *words, *how, "--json").splitlines()]
        found = [one["candidates"][0]["document"] for one in answers]
        return [
            (first == question["document"], one["answer"] in question["answers"])
            for first, one, question in zip(found, answers, questions, strict=True)
        ]

    # Among 1,152 documents, of which some share a name with the right one: about 0.89 are found by memory, and each
    # part of 24 questions has 18 to 24 of them (docs/results.md).
    by_memory, by_both = ask(), ask("--how", "both")
    assert sum(found for found, _ in by_memory) >= 0.7 * len(questions), by_memory
    assert sum(found for found, _ in by_both) >= 0.9 * len(questions), by_both
    for answered in (by_memory, by_both):
        read = [right for found, right in answered if found]
        assert sum(read) >= 0.95 * len(read), answered
