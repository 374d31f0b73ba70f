"""The importers by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from clara_jax.data.importers import beir, dpr, hotpotqa, musique, natural_questions, squad, two_wiki
from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log


@dataclasses.dataclass(frozen=True)
class Importer:
    """An importer of a data set.

    Attributes:
      read: (files, log) → its examples; where a data set has a file of aliases, (files, log, aliases), too.
      title: the name by which users know it.
      read_corpus: (files, log) → all its documents, where it has more than its examples hold.
      stage: of the records that are written by default.
      most_gold: see `candidates.CandidateOptions`. DPR's questions have up to a hundred positive passages, most of them
        marked for holding the answer's words; DPR itself trains on the first alone.
      answered: its examples have answers.
    """

    read: Callable[..., Iterator[ImportedExample]]
    title: str
    read_corpus: Callable[[Sequence[str], Log], Iterator[ImportedDocument]] | None = None
    stage: str = "end_to_end"
    most_gold: int | None = None
    answered: bool = True


IMPORTERS = {
    "squad": Importer(squad.read, "SQuAD 1.1 and 2.0"),
    "hotpotqa": Importer(hotpotqa.read, "HotpotQA"),
    "nq-open": Importer(natural_questions.read_open, "Natural Questions, open domain, without documents"),
    "nq-lost-in-the-middle": Importer(
        natural_questions.read_lost_in_the_middle, "Natural Questions with the passages of Lost in the Middle"
    ),
    "dpr": Importer(dpr.read, "Natural Questions and others with the passages of DPR", most_gold=1),
    "musique": Importer(musique.read, "MuSiQue"),
    "2wiki": Importer(two_wiki.read, "2WikiMultiHopQA"),
    "beir": Importer(beir.read, "a BEIR folder", beir.read_corpus, stage="retrieval", answered=False),
}
CLARA = "clara"  # records already, see `clara_multi_stage`
