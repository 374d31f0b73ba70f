"""The command that answers: questions typed one after another, and those of a file; the pipeline has no model."""

import contextlib
import io
import json
import sys

import pytest

from clara_jax import ask
from clara_jax.errors import ClaraError
from clara_jax.results import Hit, RagAnswer, RetrievedContext


class Pipeline:
    """Answers that the question is good, unless it is bad."""

    usual_k, usual_how = 2, "memory"

    def __init__(self):
        self.asked, self.store = [], "abc"  # which has a length

    def answer(self, question, **options):
        self.asked.append(question)
        if "bad" in question:
            raise ClaraError("too long")
        hit = Hit("d#0", "d", "", "a text", "", 0, 6, 2, 0.5, 1)
        context = RetrievedContext(question, (hit,), 1, None, 2.0, {}, question)
        return RagAnswer(f"good: {question}", context, (1,), -1.0, {})


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*options, typed="", terminal=False):
        pipeline = Pipeline()
        monkeypatch.setattr(ask, "_pipeline", lambda arguments: contextlib.nullcontext(pipeline))
        monkeypatch.setattr(sys, "argv", ["ask", "--store", "s", *map(str, options)])
        stdin = io.StringIO(typed)
        stdin.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stdin)
        ask.main()
        return pipeline.asked, capsys.readouterr()

    return command


def test_questions_are_asked_for_until_a_word_ends_it(run):
    typed = "one\n\n help \na bad one\ntwo\nEXIT\nthree\n"
    asked, said = run(typed=typed, terminal=True)
    assert asked == ["one", "a bad one", "two"]
    assert said.out.count("question> ") == 6 and "good: two" in said.out
    assert "the 2 best of 3 chunks, found by memory" in said.out and "exit, quit" in said.out
    assert "error: too long\n" in said.err and "Traceback" not in said.err
    asked, said = run("--json", typed="one\ntwo\n")  # through a pipe: to its end, and nothing else is printed
    assert [json.loads(line)["question"] for line in said.out.splitlines()] == asked == ["one", "two"] and not said.err


def test_the_questions_of_a_file_are_shown_with_their_answers_and_go_on(run, tmp_path, capsys):
    file = tmp_path / "questions.txt"
    file.write_text("one\n\ntwo\n")
    asked, said = run("--questions", file)
    lines = said.out.splitlines()
    assert lines[0] == "> one" and lines[1] == "good: one" and lines[2].startswith("  1. +0.500  d#0  a text")
    assert asked == ["one", "two"] and lines.index("> two") < lines.index("good: two")
    file.write_text("one\nbad\ntwo\n")
    with pytest.raises(ClaraError, match="questions.txt: 1 of 3 questions were not answered"):
        run("--questions", file)
    said = capsys.readouterr()
    assert "good: two" in said.out and f"error: {file}:2: too long\n" in said.err


def test_a_bad_condition_is_refused_before_a_model_is_opened(run):
    with pytest.raises(ClaraError, match="where: 'colour = 1' is no condition on the columns: 'colour' is no column"):
        run("Who?", "--where", "colour = 1")
