"""What is asked: cases, and suites of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Case:
    """One question over its documents, or one document that is to be told again or written out.

    Attributes:
      id: different from all others of its suite.
      kind: what is asked for.
      question: empty where a document is told again or written out.
      documents: at least one; exactly one where it is told again or written out.
      references: right answers; where a document is told again, texts that tell it. Empty where none is known: what
        compares with references is then not a number, and is left out of every mean.
      instead_of: of a counterfactual case the answers that its documents gave before they were changed; else empty.
      positives: sorted indices into ``documents``; empty where none is known, or none is there.
      tags: what results are broken down by, e.g. {"position": "first third", "fact": "number"}.
    """

    id: str
    kind: Literal["question", "paraphrase", "autoencode"]
    question: str
    documents: tuple[str, ...]
    references: tuple[str, ...]
    positives: tuple[int, ...] = ()
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instead_of: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What JSON holds of it: ``instead_of`` only where there is something."""
        found = dataclasses.asdict(self)
        return found if self.instead_of else {name: value for name, value in found.items() if name != "instead_of"}


@dataclasses.dataclass(frozen=True)
class Suite:
    """Cases of one kind.

    Attributes:
      name: parts joined by "/", e.g. "end_to_end/nq/oracle".
      ranked: documents are candidates, of which the best k are read; else all of them are, in their order.
    """

    name: str
    ranked: bool
    cases: tuple[Case, ...]

    @property
    def kind(self) -> str:
        """Of its cases."""
        return self.cases[0].kind

    def fields(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {"name": self.name, "ranked": self.ranked, "cases": [case.fields() for case in self.cases]}

    def digest(self) -> str:
        """Hash of everything that is asked: equal exactly when results may be compared."""
        content = json.dumps([self.ranked, [case.fields() for case in self.cases]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
