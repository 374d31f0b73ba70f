"""The text of an answer that is being decoded, in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from clara_jax.inference.requests import RequestHandle, Result

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoded from a character that is not complete yet


class TextStream:
    """The pieces of an answer's text; a piece that has been given is never taken back.

    An incomplete character waits for its rest, and so does what may be the beginning of a stop text.

    Attributes:
      whole: the text so far; all of it once there is a result.
      result: the engine's result; None until the answer has ended.
    """

    def __init__(self, handle: RequestHandle, decode: Callable[[list[int]], str], endings: Sequence[str] = ()):
        """Follow a request.

        Args:
          handle: of the submitted request.
          decode: makes a text of token ids.
          endings: stop texts; the answer ends before the first of them.
        """
        self._handle, self._decode, self._endings = handle, decode, endings
        self._given = self.whole = ""
        self.result: Result | None = None

    def update(self) -> str:
        """Return the text that is new since the last call, and finish the request where a stop text is complete.

        Raises:
          ClaraError: the answer has failed (`RequestHandle.error`).
        """
        handle = self._handle
        if handle.error is not None and handle.result is None:
            raise handle.error
        whole = self._decode(handle.tokens)
        place = min((at for at in map(whole.find, self._endings) if at >= 0), default=-1)
        if place >= 0:
            handle.finish()
            whole = whole[:place]
        result = handle.result
        if place >= 0 and result is not None:  # the engine may have ended it in the same step
            result = dataclasses.replace(result, ended="stop")
        self.whole, self.result = whole, result
        sure = whole if result is not None else whole.rstrip(_REPLACEMENT)
        if result is None:
            sure = sure[: len(sure) - max((_begun(sure, ending) for ending in self._endings), default=0)]
        if not sure.startswith(self._given):
            return ""
        piece, self._given = sure[len(self._given) :], sure
        return piece


def _begun(text: str, ending: str) -> int:
    """Return the number of characters at the end of a text that may begin an ending."""
    return next((n for n in range(min(len(ending) - 1, len(text)), 0, -1) if text.endswith(ending[:n])), 0)
