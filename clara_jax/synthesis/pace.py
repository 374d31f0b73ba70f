"""How fast requests may follow each other: so many in a minute, so many tokens, and none while a server wants rest."""

from __future__ import annotations

import asyncio
import time

from aiolimiter import AsyncLimiter


class Pace:
    """Turns are given in the order in which they are asked for.

    Each rate may be exceeded by what it allows in one second, in any span of time; so a window of a minute that the
    server keeps may be, too, by a 60th.

    Attributes:
      waited: seconds, of all turns together.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None):
        self._requests, self._tokens = _limiter(requests_per_minute), _limiter(tokens_per_minute)
        self._rests_until = 0.0
        self._order = asyncio.Lock()
        self.waited = 0.0

    def rest(self, seconds: float) -> None:
        """Nobody gets a turn for so long."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    async def turn(self, tokens: int) -> None:
        """Waits until a request of so many tokens may be sent."""
        began = time.monotonic()
        async with self._order:
            if self._requests is not None:
                await self._requests.acquire()
            # A request may have more tokens than a second allows: they are taken by parts.
            while self._tokens is not None and tokens > 0:
                part = min(tokens, self._tokens.max_rate)
                await self._tokens.acquire(part)
                tokens -= part
            while (left := self._rests_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
        self.waited += time.monotonic() - began


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """One that lets through at once what a second allows, and at least 1."""
    if per_minute is None:
        return None
    burst = max(1.0, per_minute / 60)
    return AsyncLimiter(burst, burst / per_minute * 60)
