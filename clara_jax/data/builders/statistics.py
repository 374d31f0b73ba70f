"""Statistics of a data set before training on it: lengths, compression, duplicates, leaks.

Texts are compared by their words alone: case, punctuation and white space make no two questions or documents
different. Of a text only a hash, a length and its place are kept, so that a million records fit into memory.
"""

from __future__ import annotations

import array
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from clara_jax.data.builders.overlap import Overlap, runs
from clara_jax.data.passages import Passage
from clara_jax.input_pipeline.records import Record
from clara_jax.spelling import normal_form
from clara_jax.text.counting import count_words

Count = Callable[[list[str]], Sequence[int]]  # texts to the length of each

KINDS = ("documents", "questions", "answers")
EXAMPLES = 10  # of each finding, named in the report
OVERLAPPING = 0.5  # share of a document's runs of words from which on it counts as known
BINS = 40
_SLICE = 256  # items whose texts are counted at one time
_CACHED = 2**16  # texts, most of which stand in many records
_WORD = re.compile(r"\w+")
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def words(text: str) -> list[str]:
    """Return a text's words in the form in which texts are compared."""
    return _WORD.findall(normal_form("NFC", text).casefold())


class Texts:
    """All texts of one kind in a split, in order: hash, tokens, the item each stands in, and whether it is gold."""

    def __init__(self):
        self._hashes, self._tokens, self._owners = array.array("Q"), array.array("i"), array.array("i")
        self._gold = array.array("b")

    def add(self, hashed: int, tokens: int, owner: int, gold: bool = False) -> None:
        """Append a text: its hash, its length, the number of its item, and whether it is gold."""
        self._hashes.append(hashed)
        self._tokens.append(tokens)
        self._owners.append(owner)
        self._gold.append(gold)

    @property
    def hashes(self) -> np.ndarray:
        """The hash of each text, uint64."""
        return np.array(self._hashes, np.uint64)

    @property
    def tokens(self) -> np.ndarray:
        """The length of each text, int64."""
        return np.array(self._tokens, np.int64)

    @property
    def owners(self) -> np.ndarray:
        """The number of the item in which each text stands, int64."""
        return np.array(self._owners, np.int64)

    @property
    def gold(self) -> np.ndarray:
        """Whether each text is gold, bool."""
        return np.array(self._gold, bool)


class SplitContents:
    """A split, read once.

    Args:
      items: records or passages; they are not kept.
      count: gives texts their lengths.
      known: meets every text, to measure how much of held-out documents stands in them.
      keep_runs: keep the runs of words of each different document.

    Attributes:
      where: of each item.
      texts: `Texts` by kind; a passage is a document.
      reworded: questions by their words in any order, else as ``texts["questions"]``.
      records: items by their whole content.
      runs: of each different document, with the first item it stands in.
    """

    def __init__(
        self, items: Iterable[Record | Passage], count: Count, known: Overlap | None = None, keep_runs: bool = False
    ):
        self.where: list[str] = []
        self.texts = {kind: Texts() for kind in KINDS}
        self.reworded, self.records = Texts(), Texts()
        self.runs: dict[int, tuple[int, np.ndarray]] = {}
        self._count, self._known, self._keep_runs = count, known, keep_runs
        self._cache: dict[str, tuple[int, int]] = {}
        for part in _slices(items):
            self._add([(item.where, _parts(item), _gold(item)) for item in part])

    def _add(self, items: Sequence[tuple[str, dict[str, tuple[str, ...]], tuple[int, ...]]]) -> None:
        self._look_up({text: None for _, parts, _ in items for texts in parts.values() for text in texts})
        for where, parts, gold in items:
            owner, content = len(self.where), []
            self.where.append(where)
            for kind, texts in parts.items():
                for place, text in enumerate(texts):
                    hashed, tokens = self._cache[text]
                    content.append(f"{kind} {hashed}")
                    self.texts[kind].add(hashed, tokens, owner, kind == "documents" and place in gold)
                    if kind == "questions":
                        self.reworded.add(_hash(sorted(words(text))), tokens, owner)
                    elif kind == "documents" and self._keep_runs and hashed not in self.runs:
                        self.runs[hashed] = owner, runs(words(text))
            self.records.add(_hash(content), 0, owner)

    def _look_up(self, texts: dict[str, None]) -> None:
        """Add these texts to the cache."""
        if len(self._cache) > _CACHED:
            self._cache.clear()
        new = [text for text in texts if text not in self._cache]
        for text, tokens in zip(new, self._count(new) if new else [], strict=True):
            found = words(text)
            self._cache[text] = _hash(found), tokens
            if self._known is not None:
                self._known.meet(found)


def measure(
    splits: dict[str, Iterable[Record | Passage]],
    count: Count = count_words,
    doc_max_length: int = 256,
    compress_rate: int = 16,
) -> dict[str, Any]:
    """Measure the splits; the result is ready for JSON.

    Args:
      splits: items by split. Texts of "train" are looked for in every other.
      count: gives texts their lengths.
      doc_max_length: tokens at which documents are cut.
      compress_rate: doc_max_length over memory tokens of a document.

    Returns:
      "splits": by split, see `_about`; "leaks": by split other than "train", see `_leaks`.
    """
    held_out = {
        name: SplitContents(items, count, keep_runs="train" in splits)
        for name, items in splits.items()
        if name != "train"
    }
    collected, overlaps = dict(held_out), {}
    if "train" in splits:
        different = [text for split in held_out.values() for _, text in split.runs.values()]
        known = Overlap(different)
        collected = {"train": SplitContents(splits["train"], count, known if different else None)} | held_out
        shares = known.shares()
        for name, split in held_out.items():
            overlaps[name], shares = shares[: len(split.runs)], shares[len(split.runs) :]
    return {
        "splits": {name: _about(split, doc_max_length, compress_rate) for name, split in collected.items()},
        "leaks": {name: _leaks(held_out[name], collected["train"], overlaps[name]) for name in overlaps},
    }


def _about(split: SplitContents, doc_max_length: int, compress_rate: int) -> dict[str, Any]:
    """Describe a split: "records", "lengths" by kind, "documents_per_record", "memory", "duplicates"."""
    documents, count = split.texts["documents"], len(split.where)
    tokens, owners, hashes = documents.tokens, documents.owners, documents.hashes
    memory, read = doc_max_length // compress_rate, np.minimum(tokens, doc_max_length)
    # One number for a document in a record, mixed so that no two are likely to be the same.
    _, once = np.unique(hashes ^ (owners.astype(np.uint64) * _MIXER), return_index=True)
    twice = np.bincount(owners, minlength=count) - np.bincount(owners[once], minlength=count)
    return {
        "records": count,
        "lengths": {kind: _lengths(texts.tokens) for kind, texts in split.texts.items()},
        "documents_per_record": _lengths(np.bincount(owners, minlength=count)),
        "memory": {
            "doc_max_length": doc_max_length,
            "compress_rate": compress_rate,
            "memory_tokens_per_document": memory,
            "document_tokens_read": int(read.sum()),
            "effective_compress_rate": _share(int(read.sum()), len(tokens) * memory),
            "cut_documents": int((tokens > doc_max_length).sum()),
            "lost_tokens": int((tokens - read).sum()),
        },
        "duplicates": {
            "records": _repeated(split, split.records),
            "questions": _repeated(split, split.texts["questions"]),
            "documents": {"all": len(hashes), "different": len(np.unique(hashes))},
            "records_with_a_document_twice": _named(split, np.flatnonzero(twice)),
        },
    }


def _leaks(split: SplitContents, train: SplitContents, overlaps: np.ndarray) -> dict[str, Any]:
    """Count the held-out records that training gives away, and how; each with the first examples.

    "records": all of one is in train; "questions": a question of it is; "reworded_questions": a question with the same
    words in another order is; "gold_documents", "documents": a positive document of it, any document of it is;
    "overlapping_documents": different documents that are not in train but half of whose runs of eight words are.
    """
    documents, questions = split.texts["documents"], split.texts["questions"]
    known = _first_owner(documents.hashes, train.texts["documents"])
    same = _first_owner(questions.hashes, train.texts["questions"])
    reworded = np.where(same < 0, _first_owner(split.reworded.hashes, train.reworded), -1)
    first_known = {hashed for hashed, found in zip(documents.hashes.tolist(), known, strict=True) if found >= 0}
    near = [
        (owner, share)
        for (hashed, (owner, _)), share in zip(split.runs.items(), overlaps, strict=True)
        if hashed not in first_known and share >= OVERLAPPING
    ]
    return {
        "records": _found(split, train, split.records.owners, _first_owner(split.records.hashes, train.records)),
        "questions": _found(split, train, questions.owners, same),
        "reworded_questions": _found(split, train, questions.owners, reworded),
        "gold_documents": _found(split, train, documents.owners, np.where(documents.gold, known, -1)),
        "documents": _found(split, train, documents.owners, known),
        "different_documents": {"found": len(first_known), "of": len(split.runs)},
        "overlapping_documents": {
            "found": len(near),
            "of": len(split.runs),
            "examples": [{"held_out": split.where[owner], "share": round(float(share), 3)} for owner, share in near][
                :EXAMPLES
            ],
        },
    }


def _lengths(tokens: np.ndarray) -> dict[str, Any]:
    """Return count, total, minimum, mean, percentiles, maximum, and a histogram: the bins' edges and counts."""
    if not len(tokens):
        return {"count": 0}
    low, high = int(tokens.min()), int(tokens.max())
    step = max(1, -(-(high + 1 - low) // BINS))
    edges = np.arange(low, high + 1 + step, step)
    p50, p95, p99 = (float(value) for value in np.percentile(tokens, [50, 95, 99]))
    return {
        "count": len(tokens),
        "total": int(tokens.sum()),
        "min": low,
        "mean": round(float(tokens.mean()), 2),
        "median": p50,
        "p95": p95,
        "p99": p99,
        "max": high,
        "histogram": {"edges": edges.tolist(), "counts": np.histogram(tokens, edges)[0].tolist()},
    }


def _repeated(split: SplitContents, texts: Texts) -> dict[str, Any]:
    """Count texts that stood before; the examples name the record of each and the one where it stood first."""
    hashes, owners = texts.hashes, texts.owners
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    examples = [
        {"record": split.where[owners[place]], "first": split.where[owners[first[inverse[place]]]]}
        for place in again[:EXAMPLES]
    ]
    return {"found": len(again), "of": len(hashes), "examples": examples}


def _named(split: SplitContents, places: np.ndarray) -> dict[str, Any]:
    examples = [{"record": split.where[place]} for place in places[:EXAMPLES]]
    return {"found": len(places), "of": len(split.where), "examples": examples}


def _first_owner(hashes: np.ndarray, texts: Texts) -> np.ndarray:
    """Return for each hash the first item of ``texts`` that has it, -1 where none does."""
    known, first = np.unique(texts.hashes, return_index=True)
    if not len(known):
        return np.full(len(hashes), -1)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[places] == hashes, texts.owners[first[places]], -1)


def _found(split: SplitContents, train: SplitContents, owners: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Count the records of a split one of whose texts was found in an item of train."""
    hits = np.flatnonzero(found >= 0)
    records, first = np.unique(owners[hits], return_index=True)
    examples = [
        {"held_out": split.where[record], "train": train.where[found[hits[place]]]}
        for record, place in zip(records[:EXAMPLES], first[:EXAMPLES], strict=True)
    ]
    return {"found": len(records), "of": len(split.where), "examples": examples}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


def _parts(item: Record | Passage) -> dict[str, tuple[str, ...]]:
    if isinstance(item, Passage):
        return {"documents": (item.text,)}
    return {"documents": item.documents, "questions": item.questions, "answers": item.answers}


def _gold(item: Record | Passage) -> tuple[int, ...]:
    return getattr(item, "positives", ())


def _hash(parts: Iterable[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _slices(items: Iterable[Record | Passage]) -> Iterator[list[Record | Passage]]:
    iterator = iter(items)
    while part := list(islice(iterator, _SLICE)):
        yield part
