"""Evaluation cases, suites of them, and questions to a whole corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Case:
    """One question over its documents, or one document to paraphrase or to reconstruct.

    Attributes:
      id: unique in its suite.
      kind: what is asked for: an answer, a paraphrase, or the document itself.
      question: empty where a document is paraphrased or reconstructed.
      documents: at least one; exactly one where it is paraphrased or reconstructed.
      references: right answers, or reference paraphrases. Empty where none is known: metrics that need references are
        then NaN, and are left out of every mean.
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
        """Return the fields as they are stored in JSON, ``instead_of`` only where it is not empty."""
        found = dataclasses.asdict(self)
        return found if self.instead_of else {name: value for name, value in found.items() if name != "instead_of"}


@dataclasses.dataclass(frozen=True)
class Suite:
    """Cases of one kind.

    Attributes:
      name: parts joined by "/", e.g. "end_to_end/nq/oracle".
      ranked: documents are candidates, of which the best k are read; otherwise all are read, in their order.
      cases: at least one.
    """

    name: str
    ranked: bool
    cases: tuple[Case, ...]

    @property
    def kind(self) -> str:
        """Return the kind of the suite's cases."""
        return self.cases[0].kind

    def fields(self) -> dict[str, Any]:
        """Return the fields as they are stored in JSON."""
        return {"name": self.name, "ranked": self.ranked, "cases": [case.fields() for case in self.cases]}

    def digest(self) -> str:
        """Return a hash of everything that is asked: equal exactly when results may be compared."""
        content = json.dumps([self.ranked, [case.fields() for case in self.cases]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class CorpusQuestion:
    """A question to a whole corpus, with what is known of the passages that answer it.

    Attributes:
      id: unique among the questions.
      question: its text.
      references: right answers; empty where none is known.
      documents: ids of the documents of the corpus that answer it; empty where ``texts`` say which they are.
      texts: the passages themselves.
    """

    id: str
    question: str
    references: tuple[str, ...]
    documents: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return the fields as they are stored in JSON."""
        return dataclasses.asdict(self)
