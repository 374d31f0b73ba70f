"""Work for a client, who may go before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


class Gone(Exception):
    """The client does not wait any more."""


async def while_there(request: Request, work: Awaitable[T], seconds: float | None) -> T:
    """What the work gives, which is given up where nobody waits for it.

    Args:
      seconds: that it may take; None for any number.

    Raises:
      Gone: the client went first.
      TimeoutError: it took longer.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise Gone if gone in done else TimeoutError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
