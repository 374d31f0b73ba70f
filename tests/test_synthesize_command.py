"""`python -m clara_jax.synthesize` against local servers that behave, misbehave, and see their clients killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clara_jax import synthesize
from clara_jax.input_pipeline.records import read_records
from clara_jax.synthesis import endpoint
from clara_jax.synthesis.runner import SynthesisSettings
from tests.locations import ROOT
from tests.synthesis import model
from tests.synthesis.scripted import Misbehaviour, Scripted, fails, raw, says

DOCUMENTS = 12
KEY = "sk-very-secret-0123456789"
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def answered(body, after=0.0):
    messages = [(message["role"], message["content"]) for message in body["messages"]]
    return says(model.answer(messages), usage=USAGE, after=after)


def good(body, times):
    return answered(body)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": f"d{number}", "title": "", "text": model.document(number)} for number in range(DOCUMENTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(corpus, output, server, *further):
    common = ["--documents", corpus, "--output", output, "--endpoint", server.url, "--model", "scripted"]
    return [*map(str, common), *map(str, further)]


def start(*argv):
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    command = [sys.executable, "-m", "clara_jax.synthesize", *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process, code=0):
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == code, said
    return said


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the command in this process, with short waits; its exit code and what it printed."""
    monkeypatch.setattr(endpoint, "BACK_OFF", lambda state: 0.01)
    monkeypatch.setattr(endpoint, "REST", 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["synthesize", *map(str, argv)])
        try:
            synthesize.command.run(synthesize.main)
            code = 0
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_documents_become_records(corpus, tmp_path):
    output = tmp_path / "out" / "scp.jsonl"
    with Scripted(good) as server:
        said = finish(start(*arguments(corpus, output, server)))
        asked = len(server.requests)
        finish(start(*arguments(corpus, output, server)))
        assert len(server.requests) == asked, "nothing is asked twice"
    assert "12 simple, 12 complex, 12 paraphrase" in said and f"{asked:,} requests sent" in said
    records = read_records(output, "scp")
    assert [record.qid for record in records[:4]] == ["d0#simple", "d0#complex", "d0#paraphrase", "d1#simple"]
    assert all(record.documents == (model.document(number // 3),) for number, record in enumerate(records))
    assert (tmp_path / "out" / "scp.aside.jsonl").read_text() == ""


def test_a_server_that_misbehaves_in_every_way(corpus, tmp_path, here):
    """What it gets wrong once or twice is asked again, and the records are those of one that gets all right."""
    ways = [
        *Misbehaviour,
        raw("{'choices': ["),
        raw("<html>502</html>", 502),
        raw('{"choices": []}'),
        fails(429, retry_after="0"),
        fails(429),
        fails(500),
        fails(503, f"Bearer {KEY} is busy"),
        fails(408),
        says(""),
        says(None),
        says({"something": "else"}),
        says("I am sorry, I cannot do this."),
        says('{"questions": ["Wh', "length"),
        says('{"answer": '),
    ]
    senseless, came = 4, set()  # the last ones: a reply that says nothing, and is asked for with another seed

    def behave(body, times):
        last = body["seed"] % SynthesisSettings().tries == SynthesisSettings().tries - 1
        count = len(ways) - senseless * last
        draw = random.Random(json.dumps(body["messages"]) + str((times, body["seed"]))).randrange(2 * count)
        if draw >= count or times > 2:
            return answered(body)
        came.add(draw)
        return ways[draw]

    with Scripted(good) as server:
        assert here(*arguments(corpus, tmp_path / "good.jsonl", server))[0] == 0
    with Scripted(behave) as server:
        code, said = here(*arguments(corpus, tmp_path / "bad.jsonl", server, "--timeout", 1, "--attempts", 9))
    assert code == 0 and came == set(range(len(ways))), said
    assert "the server: sent again: " in said and " http_429, " in said and " timeout; " in said
    assert (tmp_path / "bad.jsonl").read_text() == (tmp_path / "good.jsonl").read_text()
    assert (tmp_path / "bad.aside.jsonl").read_text() == ""
    assert not [path for path in tmp_path.rglob("*") if KEY.encode() in path.read_bytes()] and KEY not in said


def test_what_a_server_never_answers_is_rejected(corpus, tmp_path, here):
    """The others are not held up, and it may be tried again."""
    bad = [model.document(3), model.document(7)]

    def behave(body, times):
        if bad[0] in body["messages"][-1]["content"]:
            return fails(400, "the prompt is too long")
        return fails(500) if bad[1] in body["messages"][-1]["content"] else answered(body, after=0.01)

    output = tmp_path / "scp.jsonl"
    with Scripted(behave) as server:
        code, said = here(*arguments(corpus, output, server, "--attempts", 2))
    assert code == 0 and "6 refused" in said, said
    rejected = [json.loads(line) for line in (tmp_path / "scp.aside.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rejected] == [("d3", "refused")] * 3 + [("d7", "refused")] * 3
    assert "the prompt is too long" in rejected[0]["detail"]
    with Scripted(good) as server:
        code, said = here(*arguments(corpus, output, server, "--again", "refused"))
        assert len(read_records(output, "scp")) == 3 * DOCUMENTS and (tmp_path / "scp.aside.jsonl").read_text() == ""


def test_a_server_that_is_away_ends_the_run_and_nothing_is_lost(corpus, tmp_path, here):
    output, count = tmp_path / "scp.jsonl", [0]

    def behave(body, times):
        count[0] += 1
        return answered(body) if count[0] <= 60 else Misbehaviour.DROP

    with Scripted(behave) as server:
        code, said = here(*arguments(corpus, output, server, "--attempts", 2, "--concurrency", 4))
    assert code == 2 and "the same command goes on" in said and not output.exists()
    with Scripted(good) as server:
        code, said = here(*arguments(corpus, output, server))
        assert code == 0 and "60 known" in said.replace(",", ""), said


@pytest.mark.parametrize(
    ("status", "said"), [(401, "the key is missing"), (403, "the key"), (404, "there is no model 'scripted'")]
)
def test_mistakes_end_at_once_in_one_line(corpus, tmp_path, here, status, said):
    with Scripted(lambda body, times: fails(status, f"no: {KEY}")) as server:
        code, words = here(*arguments(corpus, tmp_path / "scp.jsonl", server))
        assert len(server.requests) <= 64
    (line,) = [line for line in words.splitlines() if line.startswith("error:")]
    assert code == 2 and said in line and KEY not in words


def test_another_journal_is_needed_for_other_settings(corpus, tmp_path, here):
    output = tmp_path / "scp.jsonl"
    with Scripted(good) as server:
        assert here(*arguments(corpus, output, server))[0] == 0
        before = output.read_bytes()
        code, said = here(*arguments(corpus, output, server, "--rounds", 2))
        assert code == 2 and "was begun with rounds 10 and is now given 2" in said
        corpus.write_text(corpus.read_text().replace("Orrin", "Orrun", 1))
        code, said = here(*arguments(corpus, output, server))
        assert code == 2 and "d0: the journal" in said and output.read_bytes() == before


def test_a_budget_is_kept_and_can_be_raised(corpus, tmp_path, here):
    output = tmp_path / "scp.jsonl"
    with Scripted(good) as server:
        code, said = here(*arguments(corpus, output, server, "--budget-tokens", 20_000, "--concurrency", 4))
        assert code == 3 and "over budget" in said and "items are left" in said
        assert len(server.requests) <= 20_000 / 110 + 4
        partly = len(read_records(output, "scp"))
        code, said = here(*arguments(corpus, output, server, "--budget-cost", 1, "--prices", 1, 4))
        assert code == 0 and 0 < partly < len(read_records(output, "scp")) == 3 * DOCUMENTS
    code, said = here(*arguments(corpus, output, server, "--budget-cost", 1))
    assert code == 2 and "needs --prices" in said


def killed_and_resumed(corpus, tmp_path, kills, seed=0):
    """Starts, kills at random moments, and starts again until it ends; compares with one that was left alone."""
    rng, concurrency = random.Random(seed), 8
    slow = [0.004]
    with Scripted(lambda body, times: answered(body, slow[0])) as server:
        whole = tmp_path / "whole.jsonl"
        began = time.monotonic()
        finish(start(*arguments(corpus, whole, server, "--concurrency", concurrency)))
        took, asked = time.monotonic() - began, len(server.requests)
        server.requests.clear()
        output, landed = tmp_path / "killed.jsonl", 0
        # So slow that all kills fall into the work, and not into the start of the process.
        slow[0] = 0.004 + 0.3 * kills * concurrency / asked
        while landed < kills:
            process = start(*arguments(corpus, output, server, "--concurrency", concurrency))
            before = len(server.requests)
            end = time.monotonic() + 60
            while len(server.requests) == before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.25))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            landed += 1
        said = finish(start(*arguments(corpus, output, server, "--concurrency", concurrency)))
        assert landed == kills, f"only {landed} kills fell into the work; {took:.1f} s undisturbed"
        assert asked <= len(server.requests) <= asked + landed * concurrency, said
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed.aside.jsonl").read_bytes() == (tmp_path / "whole.aside.jsonl").read_bytes()


def test_killed_it_loses_what_is_in_flight_alone(corpus, tmp_path):
    killed_and_resumed(corpus, tmp_path, kills=2)


@pytest.mark.slow
def test_killed_twenty_times(corpus, tmp_path):
    killed_and_resumed(corpus, tmp_path, kills=20)


def test_stopped_it_writes_what_there_is(corpus, tmp_path):
    output = tmp_path / "scp.jsonl"
    with Scripted(lambda body, times: answered(body, 0.05)) as server:
        process = start(*arguments(corpus, output, server, "--concurrency", 4))
        end = time.monotonic() + 60
        while len(server.requests) < 180 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = finish(process, 3)
        assert "stopped:" in said and "items are left; the same command goes on" in said
        assert 0 < len(read_records(output, "scp")) < 3 * DOCUMENTS
        finish(start(*arguments(corpus, output, server)))
    assert len(read_records(output, "scp")) == 3 * DOCUMENTS


def test_two_workers_share_a_journal(corpus, tmp_path):
    output = tmp_path / "scp.jsonl"
    with Scripted(lambda body, times: answered(body, 0.1)) as server:
        argv = arguments(corpus, output, server, "--concurrency", 3)
        workers = [start(*argv), start(*argv)]
        said = [finish(worker) for worker in workers]
        asked = [json.dumps(request.body) for request in server.requests]
    assert len(asked) == len(set(asked)), "no document is alike, so nothing is asked twice"
    sent = [int(re.search(r"(\d+) requests sent", words)[1]) for words in said]
    assert all(sent) and sum(sent) == len(asked), "both have worked"
    assert len(read_records(output, "scp")) == 3 * DOCUMENTS


def test_answers_are_distilled(tmp_path, here):
    records, output = tmp_path / "instruct.jsonl", tmp_path / "distilled.jsonl"
    rows = [
        {
            "question": f"What is the {thing} of Landa{chr(97 + number)}?",
            "docs": [model.document(number), model.document(number + 1)],
            "answer": "an old answer",
            "pos_index": [0],
        }
        for number, thing in enumerate(("capital", "river", "weather"))
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    further = ["--records", records, "--output", output, "--model", "scripted", "--endpoint"]
    with Scripted(good) as server:
        code, said = here("answers", *further, server.url)
    assert code == 0 and "2 answer" in said and "1 not_in_documents" in said
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["answer"] for row in made] == ["Sel Landaason", "Orrin Landabson"]
    assert made[0] == rows[0] | {"answer": "Sel Landaason", "gold_answer": ["an old answer"]}
    assert read_records(output, "instruct")[0].gold_answers == ("an old answer",)


def test_statistics_and_review(corpus, tmp_path, here, monkeypatch):
    output, page = tmp_path / "scp.jsonl", tmp_path / "page.html"
    with Scripted(good) as server:
        here(*arguments(corpus, output, server))
    journal = f"{output}.journal"
    code, said = here("statistics", journal, "--page", page, "--prices", 1, 2)
    assert code == 0 and "pairs a record" in said and "5.00" in said, said
    assert "validate_answer" in page.read_text() and "<script" not in page.read_text()
    words = iter(["y", "n wrong year", "what", "", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(words))
    code, said = here("review", journal, "--count", 6, "--kind", "simple", "--reviewer", "ann")
    assert code == 0 and "simple: 1 of 2 good, 50%" in said and "Q: What is the" in said, said
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    code, said = here("review", journal, "--count", 1000, "--kind", "simple", "--reviewer", "ann")
    assert f"{5 * DOCUMENTS - 1} of {5 * DOCUMENTS} good" in said
    assert "nothing is left" in here("review", journal, "--kind", "simple", "--reviewer", "ann")[1]
    assert "Manual review" in here("statistics", journal)[1]
    code, said = here("statistics", tmp_path / "none")
    assert code == 2 and "there is no journal" in said and not Path(tmp_path / "none").exists()
