"""A chat completion: the request, the reply, and a server's refusal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHARACTERS_PER_TOKEN = 4  # where the server does not count


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


def text_of(content: Any) -> str | None:
    """Return the text of a reply's content, None where it is neither a string nor a list of parts.

    Of parts, as in OpenAI's and Mistral's interfaces, those of text count; halves of surrogate pairs become U+FFFD.
    """
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]
        texts = [part.get("text") for part in parts if part.get("type") in (None, "text", "output_text")]
        texts = [text.get("value") if isinstance(text, Mapping) else text for text in texts]  # OpenAI's assistants
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        return None
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def estimated_tokens(text: str) -> int:
    """Return the tokens of a text, estimated where the server does not count them."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
