"""Evaluation suites by name (docs/evaluation_suites.md): of files, of released sets, of the synthetic world.

Suites of the synthetic world are for models that were trained on it, about entities that no training record has.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from clara_jax.data import synthetic
from clara_jax.data.lexicon import MOST_PHRASINGS
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluation.altered_documents import NEEDLE_WORDS, counterfactual_cases, needle_cases
from clara_jax.evaluation.case_files import (
    paraphrase_cases,
    question_case,
    question_cases,
    read_documents,
    scp_cases,
    window_cases,
)
from clara_jax.formats.jsonl import is_remote
from clara_jax.input_pipeline.records import Record
from clara_jax.metrics.cases import Case, Suite

SETS = ("nq", "hotpotqa", "musique", "2wiki", "squad")
MODES = {"normal": "eval_processed_no_pos.jsonl", "oracle": "eval_processed_with_pos.jsonl"}
FOLDERS = {"compressor": "stage1_eval", "end_to_end": "stage2_eval"}
LEAST_WORDS = 60  # of a needle's document: shorter ones rarely have enough sentences
LEAST_WINDOW = 2  # words
SPLIT = "eval"  # of the synthetic world


def _world_end_to_end(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    return _world_questions(world, "end_to_end", count)


def _world_documents(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    return _world_questions(world, "instruct", count)


def _world_needle(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    cases: list[Case] = []
    for questions in synthetic.asked(world, SPLIT):
        if cases and len(cases) + len(questions) > count:
            break
        for one in questions:
            tags = {"position": f"{one.place + 1} of {one.places}", "fact": one.fact}
            name = f"{one.document.id}, {one.fact}"
            cases.append(Case(name, "question", one.question, (one.document.text,), (one.answer,), (0,), tags))
    return tuple(cases)


def _world_counterfactual(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    cases = counterfactual_cases(_world_needle(world, world.records.eval), world.seed, count)
    if not cases:
        raise ClaraError("world/counterfactual: there are too few documents for one's answer to stand in another's")
    return cases


def _world_paraphrase(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    records = _world_paraphrases(world)[:count]
    if not records:
        raise ClaraError(
            "world/paraphrase: the world has no paraphrases (synthetic.records.paraphrase_share is "
            f"{world.records.paraphrase_share})"
        )
    return tuple(Case(record.qid, "paraphrase", "", record.documents, record.gold_answers) for record in records)


def _world_hard(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    records = dataclasses.replace(world.records, hard_share=1.0)
    return _world_questions(dataclasses.replace(world, records=records), "end_to_end", count)


def _world_other_words(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    if world.world.phrasings == MOST_PHRASINGS:
        raise ClaraError(
            f"world/other_words: the model was trained on all {MOST_PHRASINGS} phrasings; there are no other words"
        )
    wordy = dataclasses.replace(world.world, phrasings=MOST_PHRASINGS)
    return _world_questions(dataclasses.replace(world, world=wordy), "instruct", count)


def _world_questions(world: SyntheticConfig, stage: str, count: int) -> tuple[Case, ...]:
    records = (synthetic.record(world, stage, SPLIT, index) for index in range(count))
    return tuple(question_case(record, record.qid) for record in records)


def _world_paraphrases(world: SyntheticConfig) -> list[Record]:
    return [record for record in synthetic.records(world, "scp", SPLIT) if record.kind == "paraphrase"]


# What makes a part, and whether its documents are ranked.
PARTS: Mapping[str, tuple[Callable[[SyntheticConfig, int], tuple[Case, ...]], bool]] = {
    "end_to_end": (_world_end_to_end, True),
    "documents": (_world_documents, False),
    "needle": (_world_needle, False),
    "counterfactual": (_world_counterfactual, False),
    "paraphrase": (_world_paraphrase, False),
    "hard": (_world_hard, True),
    "other_words": (_world_other_words, False),
}
USUAL = ("end_to_end", "documents", "needle")

# The reader of a file by kind, and whether its documents are ranked.
_FILES: dict[str, tuple[Callable[[str, int | None], tuple[Case, ...]], bool]] = {
    "questions": (question_cases, True),
    "documents": (question_cases, False),
    "scp": (scp_cases, False),
    "paraphrase": (paraphrase_cases, False),
}
_CHANGED = tuple(kind for kind in _FILES if kind != "paraphrase")  # those with questions

_FORMS = {
    "compressor[/SET[/MODE]]": f"few documents, all are read: DATA/eval/stage1_eval/SET; SET: {', '.join(SETS)}; "
    "MODE: normal (as retrieved), oracle (the right ones are among them); without them all that are there",
    "end_to_end[/SET[/MODE]]": "many candidates, the best are read: DATA/eval/stage2_eval/SET",
    "questions:FILE": "questions over candidates, of which the best are read (JSONL, in DATA or here)",
    "documents:FILE": "questions over documents, all are read",
    "scp:FILE": "questions of one document each, records of the stage scp",
    "paraphrase:FILE": "documents to be paraphrased: paraphrase records, other records, or a corpus",
    "autoencode[/WORDS]:FILE": "documents to be written out, or windows of WORDS words of them; the same files",
    "counterfactual[/KIND]:FILE": f"the same as KIND:FILE, with the answers in the documents replaced by others; KIND: "
    f"{', '.join(_CHANGED)} (scp)",
    "needle[/WORDS][:FILE]": f"an invented fact in a document, by position and kind; documents of {NEEDLE_WORDS} or "
    "WORDS words, from the compressor sets, from FILE, or from the synthetic world",
    "world[/PART]": f"the synthetic world that the model was trained on; PART: {', '.join(PARTS)}",
}
NAMES = "\n".join(f"{form}\n    {text}" for form, text in _FORMS.items())
_KNOWN = f"known are {', '.join(_FORMS)}"


def open_suites(
    names: Sequence[str], data: str | None, limit: int | None, world: SyntheticConfig | None, seed: int
) -> list[Suite]:
    """Open suites by name, in the order of the names, none twice.

    Args:
      names: see `NAMES`.
      data: the folder with the released layout, and where files are looked for first.
      limit: cases of each suite, drawn (`clara_jax.input_pipeline.drawn`); None for all.
      world: the synthetic world the model was trained on, if it was.
      seed: of the needles, the windows, and the substitutes of counterfactual documents.

    Raises:
      ClaraError: an unknown name; what it needs is missing, empty, or has a bad line.
    """
    if not names:
        raise ClaraError(f"no suite is named; {_KNOWN}")
    if limit is not None and limit < 1:
        raise ClaraError(f"limit is {limit}; it must be at least 1")
    if data is not None and not os.path.isdir(data):
        raise ClaraError(f"{data}: no such folder; name the one with the evaluation data")
    found: dict[str, Suite] = {}
    for name in names:
        for suite in _open(name, data, limit, world, seed):
            before = found.setdefault(suite.name, suite)
            if before is not suite and before.digest() != suite.digest():
                raise ClaraError(f"{name}: another suite is called {suite.name!r}, too; rename the file or its folder")
    return list(found.values())


def _open(name: str, data: str | None, limit: int | None, world: SyntheticConfig | None, seed: int) -> Iterator[Suite]:
    head, colon, file = name.partition(":")
    kind, *parts = head.split("/")
    if kind in FOLDERS and not colon and len(parts) <= 2:
        yield from _released(name, kind, parts, data, limit)
    elif kind in _FILES and file and not parts:
        read, ranked = _FILES[kind]
        path = _find(name, file, data)
        yield Suite(f"{kind}/{_short(path)}", ranked, read(path, limit))
    elif kind == "autoencode" and file and len(parts) <= 1:
        words = _words(name, parts[0], LEAST_WINDOW) if parts else None
        path = _find(name, file, data)
        yield Suite("/".join([kind, *parts, _short(path)]), False, window_cases(path, limit, words, seed))
    elif kind == "counterfactual" and file and (base := parts or ["scp"]) and base[1:] == [] and base[0] in _CHANGED:
        read, ranked = _FILES[base[0]]
        path = _find(name, file, data)
        cases = counterfactual_cases(read(path, None), seed, limit)
        if not cases:
            raise ClaraError(f"{name}: {path} has no question whose answer another one's could take the place of")
        yield Suite("/".join([kind, *parts, _short(path)]), ranked, cases)
    elif kind == "needle" and len(parts) <= 1 and bool(colon) == bool(file):
        words = _words(name, parts[0], LEAST_WORDS) if parts else NEEDLE_WORDS
        path = _find(name, file, data) if file else None
        documents = read_documents(path) if path else _fillers(name, data, world, words)
        title = "/".join(["needle", *parts, *([_short(path)] if path else [])])
        yield Suite(title, False, needle_cases(documents, seed, limit, words))
    elif kind == "world" and not colon and (not parts or (len(parts) == 1 and parts[0] in PARTS)):
        if world is None:
            raise ClaraError(f"{name}: this model was not trained on a synthetic world; name other suites")
        for part in parts or usual_parts(world):
            yield world_suite(part, world, limit)
    else:
        raise ClaraError(f"there is no suite {name!r}; {_KNOWN}")


def _released(name: str, kind: str, parts: Sequence[str], data: str | None, limit: int | None) -> Iterator[Suite]:
    """Yield the released sets of a kind that are there, or the one that is named."""
    for part, known in zip(parts, (SETS, MODES), strict=False):
        if part not in known:
            raise ClaraError(f"{name}: {part!r} is unknown; known are {', '.join(known)}")
    folder = _released_folder(name, kind, data)
    wanted = product(parts[:1] or SETS, parts[1:] or MODES)
    files = [(f"{kind}/{part}/{mode}", folder / part / MODES[mode]) for part, mode in wanted]
    found = [(title, path) for title, path in files if path.is_file()]
    if not found:
        missing = ", ".join(str(path.relative_to(folder)) for _, path in files)
        raise ClaraError(f"{name}: {folder} has none of {missing}")
    for title, path in found:
        yield Suite(title, kind == "end_to_end", question_cases(str(path), limit))


def _released_folder(name: str, kind: str, data: str | None) -> Path:
    if data is None:
        raise ClaraError(f"{name}: name the folder with the evaluation data, in which eval/{FOLDERS[kind]} lies")
    places = [Path(data, "eval", FOLDERS[kind]), Path(data, FOLDERS[kind])]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ClaraError(f"{name}: there is neither {places[0]} nor {places[1]}")
    return folder


def _find(name: str, file: str, data: str | None) -> str:
    """Return the path of a file: in the data folder, or as it is named."""
    if is_remote(file):
        return file
    places = [os.path.join(data, file), file] if data else [file]
    path = next((place for place in places if os.path.isfile(place)), None)
    if path is None:
        raise ClaraError(f"{name}: {' nor '.join(dict.fromkeys(places))}: no such file")
    return os.path.abspath(path)


def _short(path: str) -> str:
    """Return a file's name for a suite: with its folder, without its extension."""
    *_, folder, file = path.split("/")
    return f"{folder}/{file.partition('.jsonl')[0]}"


def _words(name: str, part: str, least: int) -> int:
    if not (part.isascii() and part.isdigit() and int(part) >= least):
        raise ClaraError(f"{name}: {part!r} must be a number of words, at least {least}")
    return int(part)


def _fillers(name: str, data: str | None, world: SyntheticConfig | None, words: int) -> Iterator[str]:
    """Yield documents for needles: of the compressor sets that are there, else of the world, several in one."""
    if data is None and world is not None:
        return _joined((document.text for document in synthetic.documents(world, SPLIT)), words)
    suites = _released(name, "compressor", (), data, None)
    return (document for suite in suites for case in suite.cases for document in case.documents)


def _joined(texts: Iterable[str], words: int) -> Iterator[str]:
    """Yield texts joined until they have that many words; the rest at the end is dropped."""
    joined = ""
    for text in texts:
        joined = f"{joined} {text}".lstrip()
        if len(joined.split()) >= words:
            yield joined
            joined = ""


def world_suite(part: str, world: SyntheticConfig, limit: int | None = None) -> Suite:
    """Return the suite of one of `PARTS`, named "world/<part>".

    Args:
      part: a key of `PARTS`.
      world: the synthetic world the model was trained on.
      limit: cases at most, ``records.eval`` without; of the needles, whole rounds of balanced questions, at least one.

    Raises:
      ClaraError: the world has none of this part.
    """
    make, ranked = PARTS[part]
    count = world.records.eval if limit is None else min(limit, world.records.eval)
    return Suite(f"world/{part}", ranked, make(world, count))


def usual_parts(world: SyntheticConfig) -> list[str]:
    """Return the parts that resemble the training data; paraphrases only where that has some."""
    return [*USUAL, "paraphrase"] if _world_paraphrases(world) else [*USUAL]
