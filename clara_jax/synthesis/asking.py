"""Asks a language model for one step, and gives what its reply means: out of the journal where it was asked before."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from clara_jax.synthesis import replies
from clara_jax.synthesis.endpoint import Ask, Refused, Reply
from clara_jax.synthesis.journal import Journal
from clara_jax.synthesis.prompts import Prompts
from clara_jax.synthesis.settings import Settings

# Asked for at temperature 0, unless they are asked for again.
_EXACT = frozenset({"answer", "validate_answer", "validate_paraphrase", "teacher"})


class SetAside(Exception):
    """Nothing comes of this item, or of this kind of it.

    Attributes:
      reason: a short name, for statistics; detail: one line.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class OverBudget(Exception):
    """What may be spent is spent."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all requests of a journal together may take.

    Attributes:
      tokens: of prompts and replies; cost: in the unit of the prices; None: as much as it takes.
      prices: of a million tokens of prompts, and of replies.
    """

    tokens: int | None = None
    cost: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def spent(self, prompt_tokens: int, completion_tokens: int) -> bool:
        over = self.tokens is not None and prompt_tokens + completion_tokens >= self.tokens
        return over or (self.cost is not None and self.price(prompt_tokens, completion_tokens) >= self.cost)


class Asker:
    """See the beginning of this module.

    Attributes:
      prompt_tokens, completion_tokens: of all replies in the journal.
      requests: sent by this process; remembered: replies that the journal had.
    """

    def __init__(
        self,
        send: Callable[[Ask, Callable[[], None]], Awaitable[Reply]],
        journal: Journal,
        prompts: Prompts,
        settings: Settings,
        budget: Budget = Budget(),
    ):
        """
        Args:
          send: `Endpoint.ask`.
        """
        self._send, self._journal, self.prompts = send, journal, prompts
        self.settings, self.budget = settings, budget
        _, self.prompt_tokens, self.completion_tokens = journal.spent()
        self.requests = self.remembered = 0
        self._under_way: dict[str, asyncio.Task[Reply]] = {}

    async def __call__(self, item: str, step: str, language: str, turn: int = 0, **fields: Any) -> Any:
        """What `replies.parse` gives for a step.

        Args:
          item: that it is for, for the journal.
          turn: the same may be asked again and be answered differently: another turn is another request.

        Raises:
          SetAside: no reply made sense, or the server refuses.
          OverBudget: it was not asked.
          ClaraError: see `Endpoint.ask`.
        """
        messages, problem = self.prompts.messages(step, language, **fields), ""
        for attempt in range(self.settings.tries):
            again = turn * self.settings.tries + attempt
            temperature = 0.0 if step in _EXACT and not again else self.settings.temperature
            ask = Ask(
                messages, replies.SCHEMAS[step], self.settings.max_tokens, temperature, self.settings.seed + again
            )
            try:
                reply = await self._reply(item, step, ask)
            except Refused as refusal:
                raise SetAside("refused", f"{step}: {refusal}") from None
            try:
                return replies.parse(step, reply.text, cut=reply.cut)
            except replies.Malformed as malformed:
                problem = str(malformed)
        raise SetAside("malformed", f"{step}: {problem}")

    async def close(self) -> None:
        """Gives up what is under way."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _reply(self, item: str, step: str, ask: Ask) -> Reply:
        key = ask.key()
        known = self._journal.reply(key)
        if known is not None:
            self.remembered += 1
            return known
        # Two documents that are alike ask the same: once is enough.
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(self._ask(key, item, step, ask))
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever waited for it may have gone, and then nobody looks at it

    async def _ask(self, key: str, item: str, step: str, ask: Ask) -> Reply:
        reply = await self._send(ask, self._within_budget)
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        # Without a pause since it came: where the process is killed, a request that is not in flight any more is known.
        return self._journal.remember(key, item, step, reply)

    def _within_budget(self) -> None:
        if self.budget.spent(self.prompt_tokens, self.completion_tokens):
            raise OverBudget
