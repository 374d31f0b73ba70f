"""A worker: processes a journal's items concurrently, beside other workers, until all are done or it is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from tqdm import tqdm

from clara_jax.synthesis.endpoint import Endpoint
from clara_jax.synthesis.journal import Item, ItemOutcome, Journal
from clara_jax.synthesis.steps import OverBudgetError, StepRunner

Work = Callable[[Item], Awaitable[Sequence[ItemOutcome]]]

_LOOK_AGAIN = 0.5  # seconds, while other workers have the last items


async def work_through(
    journal: Journal,
    work: Work,
    concurrency: int,
    done: Callable[[Sequence[ItemOutcome]], None] = lambda outcomes: None,
) -> None:
    """Process items until every one is done, those of other workers included.

    An exception of ``work`` cancels the other items and is raised; unfinished items are free again then.

    Args:
      journal: whose items are processed.
      work: makes the outcomes of an item.
      concurrency: limit on items in progress.
      done: called with the outcomes of each item.
    """
    with journal.worker() as worker:
        tasks: set[asyncio.Task[None]] = set()

        async def one(item: Item) -> None:
            outcomes = await work(item)
            journal.finish(item, outcomes)
            done(outcomes)

        try:
            while True:
                tasks |= {asyncio.ensure_future(one(item)) for item in journal.claim(worker, concurrency - len(tasks))}
                if tasks:
                    ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    # Check all before one of them raises: several may have failed at once.
                    failed = [task for task in ended if task.cancelled() or task.exception() is not None]
                    for task in failed:
                        task.result()
                elif journal.left():
                    journal.release_dead()
                    await asyncio.sleep(_LOOK_AGAIN)
                else:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            journal.release(worker)


def run(
    journal: Journal, endpoint: Endpoint, runner: StepRunner, work: Work, concurrency: int
) -> Literal["done", "stopped", "over budget"]:
    """Process the journal's items with a progress bar; Ctrl-C and SIGTERM stop it.

    Args:
      journal: whose items are processed.
      endpoint: closed at the end.
      runner: closed at the end.
      work: makes the outcomes of an item.
      concurrency: limit on items in progress.

    Raises:
      ClaraError: no request can succeed; all answers so far are in the journal.
    """
    left = journal.left()

    async def whole() -> None:
        loop, main_task = asyncio.get_running_loop(), asyncio.current_task()
        assert main_task is not None, "a coroutine of asyncio.run is a task"
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, main_task.cancel)
        came = Counter[str]()

        def done(outcomes: Sequence[ItemOutcome]) -> None:
            for outcome in outcomes:
                came["records" if outcome.record is not None else "rejected"] += 1
            cost = runner.budget.price(runner.prompt_tokens, runner.completion_tokens)
            tokens = runner.prompt_tokens + runner.completion_tokens
            bar.set_postfix(came | {"tokens": f"{tokens:,}"} | ({"cost": f"{cost:.2f}"} if cost else {}), refresh=False)
            bar.update()

        try:
            with tqdm(total=left, unit="item", mininterval=0.5) as bar:
                await work_through(journal, work, concurrency, done)
        finally:
            await runner.close()
            await endpoint.close()

    try:
        asyncio.run(whole())
    except OverBudgetError:
        return "over budget"
    except asyncio.CancelledError:
        return "stopped"
    return "done"
