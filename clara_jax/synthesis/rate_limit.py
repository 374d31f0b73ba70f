"""Rate limits of requests and of tokens, and pauses in which nothing is sent to a busy server."""

from __future__ import annotations

import asyncio
import time

from aiolimiter import AsyncLimiter


class RateLimiter:
    """A limiter of requests and tokens per minute, first come, first served.

    In any span of time each rate may be exceeded by what it allows in one second; so may the server's window of a
    minute, by a 60th.

    Attributes:
      waited: seconds that all requests together have waited.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None):
        self._requests, self._tokens = _limiter(requests_per_minute), _limiter(tokens_per_minute)
        self._paused_until = 0.0
        self._order = asyncio.Lock()
        self.waited = 0.0

    def pause(self, seconds: float) -> None:
        """Let no request go for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of so many tokens may be sent."""
        began = time.monotonic()
        async with self._order:
            if self._requests is not None:
                await self._requests.acquire()
            # A request may have more tokens than a second allows: they are acquired in parts.
            remaining = float(tokens)
            while self._tokens is not None and remaining > 0:
                part = min(remaining, self._tokens.max_rate)
                await self._tokens.acquire(part)
                remaining -= part
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
        self.waited += time.monotonic() - began


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """Return a limiter whose burst is what one second allows, and at least 1."""
    if per_minute is None:
        return None
    burst = max(1.0, per_minute / 60)
    return AsyncLimiter(burst, burst / per_minute * 60)
