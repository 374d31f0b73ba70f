"""Predictions of systems on cases, written to disk as they come, so that killed work can be continued."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse

TUPLES = ("order", "scores", "read", "rates")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A system's answer to a case, or its ranking of the candidates, with what it cost.

    Attributes:
      case: its id.
      answer: None where the system only ranks.
      order: candidates, best first; None where nothing is ranked.
      scores: of the candidates in this order.
      read: the case's documents that the generator was given, in the prompt's order; empty where it was given none, or
        those of another case.
      prompt_tokens: of the whole prompt, memories included.
      text_tokens: the length of the given documents as text.
      document_tokens: their length in the prompt: memory tokens, or the tokens of the text that was kept.
      answer_tokens: without the end token.
      ended: "stop", or "length" where the answer was cut at the limit.
      milliseconds: "first" and "total", until the first token and until the last, of a case that is asked alone:
        prompt, ranking and generation, with documents compressed before. None where it was not timed.
      rates: for each given document its tokens as text over its tokens in the prompt.
      document_bytes: size of the given documents in storage: memory vectors, or the text that was kept.
      window_tokens: length of a document that is to be reconstructed; None where none is.
      right_tokens: how many of them the answer has at their positions; None likewise.
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
    def from_json(cls, fields: object) -> Prediction:
        """Return the prediction of a decoded line.

        Raises:
          TypeError: the fields are not those of a prediction.
        """
        if not isinstance(fields, Mapping) or not isinstance(fields.get("case"), str):
            raise TypeError("a prediction names its case")
        tuples = {name: tuple(fields[name]) for name in TUPLES if fields.get(name) is not None}
        return cls(**{**fields, **tuples})


class Result(Protocol):
    """What a `ResultFile` holds: a dataclass, of one case each."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def case(self) -> str:
        """The id of its case."""
        ...


R = TypeVar("R", bound=Result)


class ResultFile(Generic[R]):
    """A JSONL file of results, one for each case, to which lines are appended durably.

    Attributes:
      results: by case, in the order of the lines.
    """

    def __init__(self, path: str | os.PathLike, from_json: Callable[[object], R], what: str):
        """Open a file, made where missing, with its folder.

        An incomplete last line, as a killed process leaves it, is cut off.

        Args:
          path: of the file.
          from_json: returns the result of a decoded line, or raises a TypeError.
          what: a word for a result, for messages.

        Raises:
          ClaraError: a line that is no such result, or a case twice; the file system refuses.
        """
        self.path = Path(path)
        self.results: dict[str, R] = {}
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
                result = from_json(parse(line))
            except (ValueError, TypeError):
                raise ClaraError(f"{self.path}:{number}: is no {what}; remove the file to begin it again") from None
            if result.case in self.results:
                raise ClaraError(f"{self.path}:{number}: the case {result.case!r} is there twice; remove the file")
            self.results[result.case] = result

    def append(self, results: Sequence[R]) -> None:
        """Append results of cases that are not there yet.

        Args:
          results: written and synced before the call returns.

        Raises:
          ClaraError: the file system refuses.
        """
        lines = [json.dumps(dataclasses.asdict(result), ensure_ascii=False) + "\n" for result in results]
        try:
            with open(self.path, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ClaraError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.results |= {result.case: result for result in results}


class PredictionFile(ResultFile[Prediction]):
    """A JSONL file of predictions; see `ResultFile`."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, Prediction.from_json, "prediction")

    @property
    def predictions(self) -> dict[str, Prediction]:
        """Return the predictions by case."""
        return self.results
