"""What came out: how one system dealt with one case, kept on disk as it comes, so that killed work goes on."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse

TUPLES = ("order", "scores", "read", "rates")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a system made of a case.

    Attributes:
      case: its id.
      answer: None where the system only ranks.
      order: candidates, best first; None where nothing is ranked.
      scores: of the candidates in this order.
      read: the case's documents that the generator was given, in the prompt's order; none where it was given none, or
        those of another case.
      prompt_tokens: of the whole prompt, memories included.
      text_tokens: what the given documents take as text.
      document_tokens: what they take in the prompt: memory tokens, or the tokens of what was left of their text.
      answer_tokens: without the end token.
      ended: "stop", or "length" where the answer was cut at the limit.
      milliseconds: "first" and "total" (until the first token, and in all; reading, ranking and writing of a case that
        is asked alone, documents compressed before); None where it was not timed.
      rates: of each given document the tokens that it has as text over those that it takes in the prompt.
      document_bytes: that the given documents take where they are kept: memory vectors, or what was left of their text.
      window_tokens, right_tokens: of a document that is written out the tokens, and how many of them were written in
        their places; None where no document is.
    """

    case: str
    answer: str | None = None
    order: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    read: tuple[int, ...] = ()
    prompt_tokens: int = 0
    text_tokens: int = 0
    document_tokens: int = 0
    answer_tokens: int = 0
    ended: str = ""
    milliseconds: Mapping[str, float] | None = None
    rates: tuple[float, ...] = ()
    document_bytes: int = 0
    window_tokens: int | None = None
    right_tokens: int | None = None

    @classmethod
    def from_json(cls, fields: object) -> Outcome:
        """The outcome of a decoded line.

        Raises:
          TypeError: it is none.
        """
        if not isinstance(fields, Mapping) or not isinstance(fields.get("case"), str):
            raise TypeError("an outcome names its case")
        tuples = {name: tuple(fields[name]) for name in TUPLES if fields.get(name) is not None}
        return cls(**{**fields, **tuples})


class OutcomeFile:
    """A JSONL file that grows line by line, each line whole on the disk before the next part of the work begins.

    Args:
      path: made where missing, with its folder. What a kill left of a last line is cut off.

    Raises:
      ClaraError: a line that is no outcome, or a case twice; the file system refuses.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.outcomes: dict[str, Outcome] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise ClaraError(f"{self.path}: cannot be opened: {error.strerror or error}") from error
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                outcome = Outcome.from_json(parse(line))
            except (ValueError, TypeError):
                raise ClaraError(f"{self.path}:{number}: is no outcome; remove the file to begin it again") from None
            if outcome.case in self.outcomes:
                raise ClaraError(f"{self.path}:{number}: the case {outcome.case!r} is there twice; remove the file")
            self.outcomes[outcome.case] = outcome

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Adds outcomes of cases that are not there yet.

        Raises:
          ClaraError: the file system refuses.
        """
        lines = [json.dumps(dataclasses.asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes]
        try:
            with open(self.path, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ClaraError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.outcomes |= {outcome.case: outcome for outcome in outcomes}
