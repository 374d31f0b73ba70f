"""The settings of a synthesis; all of them are stored in the journal, because outcomes depend on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clara_jax.errors import ClaraError

Kind = Literal["simple", "complex", "paraphrase"]
KINDS: tuple[Kind, ...] = ("simple", "complex", "paraphrase")


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """The settings of a synthesis.

    Attributes:
      kinds: kinds of records made of a document.
      rounds: limit on rounds of questions, or of paraphrases, the first included (paper, section 2.1: up to ten).
      keep_uncovered: whether pairs make a record even if the document is not covered after the last round; the paper
        drops it.
      verdicts: whether the model judges what has passed the checks. Off for models too small to judge.
      tries: how often a request is sent whose reply cannot be parsed.
      temperature: of questions, paraphrases, and repeated requests. Answers and verdicts are sampled at 0.
      max_tokens: longest reply.
      most_questions: number of questions used of one reply.
      seed: of all sampling.
      document_words: shortest and longest document that is processed; in scripts without spaces, characters.
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
