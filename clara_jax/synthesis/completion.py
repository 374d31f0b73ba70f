"""A chat completion: the request, the reply, and a server's refusal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A chat completion request.

    Attributes:
      messages: (role, content) of each.
      schema: JSON schema of the reply, None for free text.
      max_tokens: limit on the reply's length.
      temperature: of sampling.
      seed: of sampling.
    """

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float
    seed: int

    def key(self) -> str:
        """Return a hex digest of the request, the same in every process; the order of a schema's properties counts."""
        content = [self.messages, self.schema, self.max_tokens, float(self.temperature), self.seed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Completion:
    """A chat completion.

    Attributes:
      text: empty only where it is cut: all tokens went into reasoning that the server does not show.
      prompt_tokens: as the server counts; one per four characters where it does not.
      completion_tokens: likewise.
      cut: whether it stopped at max_tokens.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool


class RefusedError(Exception):
    """A request that the server will never answer, though it answers others; the message is the reason."""
