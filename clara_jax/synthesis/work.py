"""Works through a journal's items: as many at a time as requests may be in flight, beside other workers, until all are
done or it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from tqdm import tqdm

from clara_jax.synthesis.asking import Asker, OverBudget
from clara_jax.synthesis.endpoint import Endpoint
from clara_jax.synthesis.journal import Item, Journal, Outcome

Work = Callable[[Item], Awaitable[Sequence[Outcome]]]

_LOOK_AGAIN = 0.5  # seconds, while other workers have the last items


async def work_through(
    journal: Journal,
    work: Work,
    together: int,
    done: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> None:
    """Returns when every item is done, those of other workers too.

    Args:
      work: makes the outcomes of an item.
      together: items that are worked on at a time.
      done: is told what came of each.

    Raises:
      what ``work`` raises, which ends the others; `asyncio.CancelledError`. What was not finished is free again then.
    """
    with journal.worker() as worker:
        tasks: set[asyncio.Task[None]] = set()

        async def one(item: Item) -> None:
            outcomes = await work(item)
            journal.finish(item, outcomes)
            done(outcomes)

        try:
            while True:
                tasks |= {asyncio.ensure_future(one(item)) for item in journal.claim(worker, together - len(tasks))}
                if tasks:
                    ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    # All are looked at before one of them raises: several may have failed together.
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
    journal: Journal, endpoint: Endpoint, asker: Asker, work: Work, together: int
) -> Literal["done", "stopped", "over budget"]:
    """Works through the journal with a bar that tells how far it is; Ctrl-C and SIGTERM stop it.

    Args:
      endpoint: is closed at the end.

    Raises:
      ClaraError: nothing can go on; what was answered is in the journal.
    """
    left = journal.left()

    async def whole() -> None:
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, own.cancel)
        came = Counter[str]()

        def done(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                came["records" if outcome.record is not None else "set aside"] += 1
            cost = asker.budget.price(asker.prompt_tokens, asker.completion_tokens)
            tokens = asker.prompt_tokens + asker.completion_tokens
            bar.set_postfix(came | {"tokens": f"{tokens:,}"} | ({"cost": f"{cost:.2f}"} if cost else {}), refresh=False)
            bar.update()

        try:
            with tqdm(total=left, unit="item", mininterval=0.5) as bar:
                await work_through(journal, work, together, done)
        finally:
            await asker.close()
            await endpoint.close()

    try:
        asyncio.run(whole())
    except OverBudget:
        return "over budget"
    except asyncio.CancelledError:
        return "stopped"
    return "done"
