"""Run one step of the synthesis: ask the model and parse its reply, or take the reply from the journal."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from clara_jax.synthesis import replies
from clara_jax.synthesis.completion import Completion, CompletionRequest, RefusedError
from clara_jax.synthesis.journal import Journal
from clara_jax.synthesis.prompts import PromptTemplates
from clara_jax.synthesis.settings import SynthesisSettings

# Sampled at temperature 0 on the first attempt.
_DETERMINISTIC = frozenset({"answer", "validate_answer", "validate_paraphrase", "teacher"})


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
