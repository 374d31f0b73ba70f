"""The journal: nothing that was written is lost, nothing is worked on twice, and other settings are refused."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from clara_jax import ClaraError
from clara_jax.synthesis.completion import Completion, CompletionRequest
from clara_jax.synthesis.journal import Dropped, Item, ItemOutcome, Journal, TokenUsage
from clara_jax.synthesis.runner import StepRunner, work_through
from tests.locations import ROOT

ITEMS = [Item(f"d{number}", f"digest {number}", {"text": f"text {number}"}) for number in range(5)]
DONE = ItemOutcome("simple", {"question": ["q"], "answers": ["a"], "docs": ["d"]}, rounds=2)
REJECTED = ItemOutcome("complex", None, "not_covered", "no end", 10, (Dropped("leak", "there", "q", "a"),))


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "deep" / "journal")
    yield made
    made.close()


def test_items_are_claimed_once_and_finished(journal):
    assert journal.want(iter(ITEMS)) == 5
    with journal.worker() as one, journal.worker() as two:
        assert one != two
        mine, yours = journal.claim(one, 2), journal.claim(two, 9)
        assert mine == ITEMS[:2] and yours == ITEMS[2:] and not journal.claim(one, 1)
        journal.finish(ITEMS[0], [DONE, REJECTED])
        journal.release(one)
        assert journal.claim(two, 9) == [ITEMS[1]]
        journal.release_dead()
        assert not journal.claim(one, 9), "both live"
    assert journal.left() == 4
    assert list(journal.outcomes()) == [(ITEMS[0], DONE), (ITEMS[0], REJECTED)]


def test_wanting_again_keeps_what_is_done_and_follows_the_new_order(journal):
    journal.want(ITEMS[:3])
    for item in ITEMS[:3]:
        journal.finish(item, [DONE])
    assert journal.want([ITEMS[4], ITEMS[2], ITEMS[0]]) == 3 and journal.left() == 1
    assert [item.id for item, _ in journal.outcomes()] == ["d2", "d0"]


def test_what_was_rejected_for_a_reason_is_done_again(journal):
    journal.want(ITEMS[:2])
    journal.finish(ITEMS[0], [DONE, REJECTED])
    journal.finish(ITEMS[1], [DONE])
    journal.again("leak")
    assert journal.left() == 0
    journal.again("not_covered")
    assert journal.left() == 1


def test_mistakes_change_nothing(journal):
    journal.want(ITEMS)
    for items, said in (
        ([ITEMS[0], ITEMS[0]], "two items have the id 'd0'"),
        ([ITEMS[1], Item("d0", "other", {})], "d0: .* with another content"),
    ):
        with pytest.raises(ClaraError, match=said):
            journal.want(items)
        assert journal.left() == 5
    journal.bind({"model": "a", "rounds": 10})
    journal.bind({"rounds": 10, "model": "a"})
    with pytest.raises(ClaraError, match="was begun with rounds 10 and is now given 3.*another --journal"):
        journal.bind({"model": "a", "rounds": 3})
    journal.bind({"model": "a", "rounds": 10})  # what was noted first stays


def test_a_file_that_is_no_journal(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be looked at " * 50)
    with pytest.raises(ClaraError, match="cannot be opened as a journal"):
        Journal(tmp_path / "text")


def test_processes_open_a_new_journal_at_once(tmp_path):
    """SQLite lets only one of them turn the file to WAL, and the others must not end for that."""
    code = (
        "import sys, time; from pathlib import Path; from clara_jax.synthesis.journal import Journal\n"
        "print('ready', flush=True); begin = float(sys.stdin.readline())\n"
        "for number in range(100):\n"
        "    while time.time() < begin + 0.01 * number: pass\n"
        "    Journal(Path(sys.argv[1], str(number))).close()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    several = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ, text=True)
        for _ in range(3)
    ]
    for one in several:
        assert one.stdout.readline() == "ready\n"
    begin = time.time() + 0.2
    for one in several:
        one.stdin.write(f"{begin}\n")
        one.stdin.flush()
    assert [one.communicate(timeout=60)[1] for one in several] == [""] * 3
    assert [one.returncode for one in several] == [0] * 3


def test_of_replies_to_one_request_the_first_one_counts(journal):
    replies = [journal.remember(f"k{i % 3}", "d0", "answer", Completion(f"reply {i}", 10, i, False)) for i in range(9)]
    assert [reply.text for reply in replies] == ["reply 0", "reply 1", "reply 2"] * 3
    assert journal.reply("k1") == Completion("reply 1", 10, 1, False) and journal.reply("k9") is None
    assert journal.spent() == TokenUsage(3, 30, 3) and journal.spent_by_step() == {"answer": TokenUsage(3, 30, 3)}


def test_verdicts(journal):
    journal.judge("d0", "simple", 1, "ann", True, "")
    journal.judge("d0", "simple", 1, "ann", False, "wrong year")
    assert journal.verdicts() == [("d0", "simple", 1, "ann", False, "wrong year")]


def test_a_dead_workers_items_are_free(journal):
    """Another process claims three items and is killed."""
    journal.want(ITEMS)
    code = (
        "import sys, time; from pathlib import Path; from clara_jax.synthesis.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "with j.worker() as w: print(len(j.claim(w, 3)), flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(journal.path)], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ
    )
    try:
        assert other.stdout.readline().strip() == b"3"
        with journal.worker() as worker:
            journal.release_dead()
            assert journal.claim(worker, 9) == ITEMS[3:]
            other.send_signal(signal.SIGKILL)
            other.wait()
            end = time.monotonic() + 10
            while not (found := journal.claim(worker, 9)) and time.monotonic() < end:
                journal.release_dead()
            assert found == ITEMS[:3]
    finally:
        other.kill()


def test_failures_that_come_together_are_all_looked_at(journal):
    """Python would say "Task exception was never retrieved" of those that are not, long after."""
    told = []

    async def whole():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
        gate = asyncio.Event()

        async def fail(item):
            await gate.wait()
            raise ClaraError(f"{item.id} failed")

        asyncio.get_running_loop().call_later(0.01, gate.set)
        with pytest.raises(ClaraError, match="failed"):
            await work_through(journal, fail, 4)

    journal.want(iter(ITEMS))
    asyncio.run(whole())
    gc.collect()
    assert told == [] and journal.left() == 5


def test_a_request_that_nobody_waits_for_any_more_may_fail(journal):
    told = []

    async def whole():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
        gate = asyncio.Event()

        async def send(ask, may):
            await gate.wait()
            raise ClaraError("the server is away")

        runner = StepRunner(send, journal, None, None)
        asked = CompletionRequest((("user", "x"),), None, 5, 0.0, 0)
        waiting = asyncio.ensure_future(runner._reply("a", "answer", asked))
        await asyncio.sleep(0.01)
        waiting.cancel()
        gate.set()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert not runner._under_way

    asyncio.run(whole())
    gc.collect()
    assert told == []
