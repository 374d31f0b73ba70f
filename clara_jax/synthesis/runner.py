"""Run a synthesis: its settings, one step (from the journal, where it was asked before), a worker for all items."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.synthesis import replies
from clara_jax.synthesis.completion import Completion, CompletionRequest, RefusedError
from clara_jax.synthesis.journal import Item, ItemOutcome, Journal
from clara_jax.synthesis.prompts import PromptTemplates

if TYPE_CHECKING:
    from clara_jax.synthesis.endpoint import Endpoint  # whose client takes a second to import

Kind = Literal["simple", "complex", "paraphrase"]
KINDS: tuple[Kind, ...] = ("simple", "complex", "paraphrase")

Work = Callable[[Item], Awaitable[Sequence[ItemOutcome]]]

# Sampled at temperature 0 on the first attempt.
_DETERMINISTIC = frozenset({"answer", "validate_answer", "validate_paraphrase", "teacher"})
_LOOK_AGAIN = 0.5  # seconds, while other workers have the last items


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """The settings of a synthesis; all of them are stored in the journal, because outcomes depend on them.

    Attributes:
      kinds: kinds of records made of a document.
      rounds: limit on rounds of questions, or of paraphrases, the first included (paper, section 2.1: up to ten).
      keep_uncovered: whether pairs make a record even if the document is not covered after the last round; the paper
        drops it.
      verdicts: whether the model judges what has passed the checks. Off for models too small to judge.
      tries: how often a request is sent whose reply cannot be parsed.
      temperature: of questions, paraphrases, and repeated requests. Answers and verdicts are sampled at 0.
      max_tokens: longest reply.
      most_questions: number of questions used of one reply.
      seed: of all sampling.
      document_words: shortest and longest document that is processed; in scripts without spaces, characters.
    """

    kinds: tuple[Kind, ...] = KINDS
    rounds: int = 10
    keep_uncovered: bool = False
    verdicts: bool = True
    tries: int = 3
    temperature: float = 0.7
    max_tokens: int = 1024
    most_questions: int = 30
    seed: int = 0
    document_words: tuple[int, int] = (8, 2000)

    def __post_init__(self):
        for name in self.kinds:
            if name not in KINDS:
                raise ClaraError(f"kinds: {name!r} must be one of {', '.join(KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ClaraError("kinds: name each once, and at least one")
        for name in ("rounds", "tries", "max_tokens", "most_questions"):
            if getattr(self, name) < 1:
                raise ClaraError(f"{name}: {getattr(self, name)} must be at least 1")
        if not 0 <= self.temperature <= 2:
            raise ClaraError(f"temperature: {self.temperature} must be from 0 to 2")


class RejectedError(Exception):
    """An item, or one kind of its records, that is rejected.

    Attributes:
      reason: a short name, for statistics.
      detail: one line.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class OverBudgetError(Exception):
    """The end of the budget."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that all requests of a journal may use.

    Attributes:
      tokens: of prompts and replies; None for no limit.
      cost: in the unit of the prices; None for no limit.
      prices: of a million prompt tokens, and of a million reply tokens.
    """

    tokens: int | None = None
    cost: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of so many tokens."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def spent(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Return whether so many tokens exhaust the budget."""
        over = self.tokens is not None and prompt_tokens + completion_tokens >= self.tokens
        return over or (self.cost is not None and self.price(prompt_tokens, completion_tokens) >= self.cost)


class StepRunner:
    """Runs steps against an endpoint, with the journal as a cache of replies.

    Attributes:
      prompt_tokens: of all replies in the journal.
      completion_tokens: of all replies in the journal.
      requests: number sent by this process.
      remembered: number of replies that the journal had.
    """

    def __init__(
        self,
        send: Callable[[CompletionRequest, Callable[[], None]], Awaitable[Completion]],
        journal: Journal,
        prompts: PromptTemplates,
        settings: SynthesisSettings,
        budget: Budget = Budget(),
    ):
        """Count what the journal has spent so far.

        Args:
          send: `Endpoint.ask`.
          journal: where replies are looked up and stored.
          prompts: the prompts of all steps.
          settings: retries, temperature, reply length, seed.
          budget: limit on tokens and cost.
        """
        self._send, self._journal, self.prompts = send, journal, prompts
        self.settings, self.budget = settings, budget
        _, self.prompt_tokens, self.completion_tokens = journal.spent()
        self.requests = self.remembered = 0
        self._under_way: dict[str, asyncio.Task[Completion]] = {}

    async def __call__(self, item: str, step: str, language: str, turn: int = 0, **fields: Any) -> Any:
        """Return what `replies.parse` reads in the reply to a step.

        Args:
          item: id of the item that the step is for, as the journal notes it.
          step: a key of `prompts.FIELDS`.
          language: of the prompt.
          turn: counts repetitions of the same question; each turn is a request with a seed of its own.
          **fields: the step's data, see `prompts.FIELDS`.

        Raises:
          RejectedError: no reply could be parsed, or the server refuses the request.
          OverBudgetError: the budget is exhausted; nothing was sent.
          ClaraError: see `Endpoint.ask`.
        """
        messages, problem = self.prompts.messages(step, language, **fields), ""
        for attempt in range(self.settings.tries):
            again = turn * self.settings.tries + attempt
            temperature = 0.0 if step in _DETERMINISTIC and not again else self.settings.temperature
            request = CompletionRequest(
                messages, replies.SCHEMAS[step], self.settings.max_tokens, temperature, self.settings.seed + again
            )
            try:
                reply = await self._reply(item, step, request)
            except RefusedError as refusal:
                raise RejectedError("refused", f"{step}: {refusal}") from None
            try:
                return replies.parse(step, reply.text, cut=reply.cut)
            except replies.MalformedReplyError as malformed:
                problem = str(malformed)
        raise RejectedError("malformed", f"{step}: {problem}")

    async def close(self) -> None:
        """Cancel the requests in flight."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _reply(self, item: str, step: str, request: CompletionRequest) -> Completion:
        key = request.key()
        known = self._journal.reply(key)
        if known is not None:
            self.remembered += 1
            return known
        # Equal documents ask the same: they share one request.
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(self._ask(key, item, step, request))
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: str, task: asyncio.Task[Completion]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # the waiter may be gone: mark the exception as retrieved

    async def _ask(self, key: str, item: str, step: str, request: CompletionRequest) -> Completion:
        reply = await self._send(request, self._within_budget)
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        # No await between the reply and this: a kill can lose only requests that are still in flight.
        return self._journal.remember(key, item, step, reply)

    def _within_budget(self) -> None:
        if self.budget.spent(self.prompt_tokens, self.completion_tokens):
            raise OverBudgetError


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
