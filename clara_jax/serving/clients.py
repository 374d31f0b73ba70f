"""Work for a client that may disconnect before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has disconnected."""


async def while_there(request: Request, work: Awaitable[T], seconds: float | None) -> T:
    """Return the result of the work, which is cancelled when the client disconnects.

    Args:
      request: of the client.
      work: to be awaited.
      seconds: a time limit, None for none.

    Raises:
      ClientGoneError: the client disconnected first.
      TimeoutError: it took longer.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise ClientGoneError if gone in done else TimeoutError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
