"""What a synthesis is to do; all of it is part of the journal's settings, for outcomes depend on it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clara_jax.errors import ClaraError

Kind = Literal["simple", "complex", "paraphrase"]
KINDS: tuple[Kind, ...] = ("simple", "complex", "paraphrase")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How documents are worked on.

    Attributes:
      kinds: what is made of a document.
      rounds: how often questions, or a paraphrase, are asked for at most, the first time included (paper, section 2.1:
        up to ten).
      keep_uncovered: pairs also make a record where after the last round the document is not covered; the paper drops
        it.
      verdicts: the model judges what has passed the checks. A model too small to judge can go without.
      tries: how often a request is sent whose reply makes no sense.
      temperature: of what is to be varied: questions, paraphrases, and whatever is asked once more. Answers and
        verdicts are asked for at 0.
      max_tokens: longest reply.
      most_questions: that are taken from one reply.
      seed: of all draws.
      document_words: shortest and longest document that is worked on; in scripts without spaces, characters.
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
