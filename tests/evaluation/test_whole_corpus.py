"""Questions to a whole store: what is found at which rank, resumed, refused; documents of records as a corpus."""

import dataclasses
import gzip
import json
import shutil

import jax
import numpy as np
import pytest

from clara_jax import evaluate
from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.data import __main__ as data_command
from clara_jax.errors import ClaraError
from clara_jax.evaluation import whole_corpus
from clara_jax.evaluation.case_files import corpus_questions
from clara_jax.evaluation.whole_corpus import Found, Settings, measure
from clara_jax.method.clara import ClaraConfig
from clara_jax.metrics.cases import CorpusQuestion
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.text.documents import CorpusDocument
from tests.tiny import document, with_adapters, write_base

COUNT = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory, mesh):
    """A model, and a store of twelve documents, of which "long" has several chunks."""
    folder = tmp_path_factory.mktemp("place")
    base = write_base(folder / "base")
    clara = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, max_length=384)
    with_adapters(opening.from_base(str(base), clara, mesh, "float32")).save(folder / "checkpoint", "end_to_end")
    pipeline = RagPipeline.open(folder / "checkpoint", folder / "store", create=True, encoding="float32", batch_size=4)
    pipeline.add([CorpusDocument(f"d{i}", "", document(i), "") for i in range(COUNT)])
    pipeline.add([CorpusDocument("long", "", "\n\n".join(document(i) for i in range(20, 26)), "")])
    pipeline.finish()
    return folder


@pytest.fixture
def pipeline(place):
    return RagPipeline.open(place / "checkpoint", place / "store", batch_size=4)


def questions():
    asked = [CorpusQuestion(f"q{i}", document(i), (document(i).split()[0],), (f"d{i}",)) for i in range(COUNT)]
    both = CorpusQuestion("both", document(3), (), ("d3", "long"))
    return [*asked, both, CorpusQuestion("by text", document(4), ("x",), texts=(document(4),))]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_ranks_are_those_of_the_search(pipeline, tmp_path):
    """By hand: what the store's search returns, and where the passage's chunks stand in it."""
    results = measure(
        pipeline, questions(), ["words", "memory"], Settings((1, 5)), tmp_path, resamples=200, progress=False
    )
    assert results["questions"] == COUNT + 2 and results["left_out"] == 0
    for how in ("words", "memory"):
        ranks = {}
        for line in (tmp_path / "searches" / f"{how}.jsonl").read_text().splitlines():
            found = Found.from_json(json.loads(line))
            ranks[found.case] = found.ranks
        at = {1: [], 5: []}
        for question in questions():
            hits = pipeline.search(question.question, 5, how)
            passages = question.documents or ("d4",)
            wanted = [next((hit.rank for hit in hits if hit.document == name), None) for name in passages]
            assert ranks[question.id] == tuple(wanted)
            for k, values in at.items():
                values.append(np.mean([rank is not None and rank <= k for rank in wanted]))
        for k, values in at.items():
            assert results["searches"][how][f"recall@{k}"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    # The whole text of a document is found by its words first; that a search finds nothing would fail here.
    assert results["searches"]["words"]["recall@1"]["mean"] > 0.8
    assert "difference" in results["searches"]["memory"]["recall@5"]
    shown = whole_corpus.text(results)
    assert "recall@5" in shown and "p95" in shown and "14 questions" in shown


def test_what_was_stopped_goes_on(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_corpus, "TOGETHER", 4)
    asked = (pipeline, questions(), ["words"], Settings((1, 5)))
    whole = measure(*asked, tmp_path / "whole", resamples=50, progress=False)
    real, calls = whole_corpus._search, []

    def stopped(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(whole_corpus, "_search", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(*asked, tmp_path / "part", progress=False)
    path = tmp_path / "part" / "searches" / "words.jsonl"
    kept = path.read_bytes()
    assert len(kept.splitlines()) == 4
    path.write_bytes(kept + b'{"case": "q4", "ra')  # killed while it wrote
    again = measure(*asked, tmp_path / "part", resamples=50, progress=False)
    assert calls[2:] == [4, 4, 2] and path.read_bytes().startswith(kept)
    for found in (whole, again):
        del found["searches"]["words"]["milliseconds"]
    assert again == whole
    with pytest.raises(ClaraError, match="settings is not what it was"):
        measure(pipeline, questions(), ["words"], Settings((1, 3)), tmp_path / "part", progress=False)
    with pytest.raises(ClaraError, match="questions is not what it was"):
        measure(pipeline, questions()[:3], ["words"], Settings((1, 5)), tmp_path / "part", progress=False)


def test_passages_of_several_chunks_and_with_blanks_around_them_are_found(place, pipeline, tmp_path, monkeypatch):
    """Whole documents of records, as the command makes a corpus of them: their chunks have other tokens."""
    texts = ["\n\n".join(document(i) for i in range(30, 36)), f"  {document(50)}  \n\n \t\n", document(51)]
    lines = [{"question": "Where?", "docs": [text], "pos_index": [0]} for text in texts]
    records, corpus = write(tmp_path / "records.jsonl", lines), tmp_path / "corpus.jsonl"
    monkeypatch.setattr("sys.argv", ["data", "documents", str(records), "--output", str(corpus)])
    data_command.main()
    sizes = pipeline.store.encoding.shape
    fingerprint = pipeline.clara.bundle.compressor_fingerprint()
    rag = RagPipeline(pipeline.clara, DocumentStore.open_or_make(tmp_path / "store", fingerprint, "float32", *sizes))
    rag.add(rag.read([str(corpus)]))
    found = whole_corpus._located(rag, corpus_questions([str(records)]))
    assert [len(passages[0]) for passages in found] == [5, 1, 1]


def test_another_model_and_another_store_are_refused(place, pipeline, tmp_path, monkeypatch):
    """A model that was trained further with a frozen compressor shares the store, and ranks otherwise."""
    asked = questions()[:4], ["words"], Settings((1, 5))
    measure(pipeline, *asked, tmp_path / "report", resamples=50, progress=False)
    bundle = pipeline.clara.bundle
    moved = {name: jax.tree.map(lambda leaf: leaf + 1, leaves) for name, leaves in bundle.params["lora"].items()}
    lora = {**moved, "compressor": bundle.params["lora"]["compressor"]}
    other = dataclasses.replace(bundle, params={**bundle.params, "lora": lora})
    further = RagPipeline(Clara(other, 4), pipeline.store)
    with pytest.raises(ClaraError, match="model is not what it was; results would be mixed up: name another --report"):
        measure(further, *asked, tmp_path / "report", progress=False)
    shutil.copytree(place / "store", tmp_path / "store")
    changed = RagPipeline(pipeline.clara, DocumentStore.open(tmp_path / "store"))
    changed.store.tidy(now=True)  # other files with the same chunks
    measure(changed, *asked, tmp_path / "report", resamples=50, progress=False)
    changed.add([CorpusDocument("d11", "", document(40), "")])  # as many chunks as before
    with pytest.raises(ClaraError, match="store is not what it was"):
        measure(changed, *asked, tmp_path / "report", progress=False)
    real = whole_corpus._search

    def meanwhile(*arguments):
        changed.delete(["d11"])
        return real(*arguments)

    monkeypatch.setattr(whole_corpus, "_search", meanwhile)
    with pytest.raises(ClaraError, match="store is not what it was"):
        measure(changed, *asked, tmp_path / "meanwhile", progress=False)
    assert not (tmp_path / "meanwhile" / "results.json").exists()


@pytest.mark.parametrize(
    "changed", [{"ranks": [0]}, {"ranks": [True]}, {"milliseconds": None}, {"answer": 3}, {"x": 1}]
)
def test_a_result_that_no_search_writes(changed):
    whole = {"case": "q", "ranks": [1, None], "milliseconds": 2.5, "answer": None}
    assert Found.from_json(whole) == Found("q", (1, None), 2.5)
    with pytest.raises(TypeError):
        Found.from_json(whole | changed)


def test_a_report_that_cannot_be_locked(tmp_path):
    (tmp_path / "report" / ".lock").mkdir(parents=True)  # where a file would have to be
    with pytest.raises(ClaraError, match="report: cannot be written: Is a directory; name another --report"):
        with whole_corpus.claimed(tmp_path / "report"):
            pass


def test_documents_of_records_are_written_as_the_name_says_and_not_over_the_records(tmp_path, monkeypatch):
    records = write(tmp_path / "records.jsonl", [{"question": "Where?", "docs": [document(1), document(1)]}])
    output = tmp_path / "made" / "passages.jsonl.gz"
    monkeypatch.setattr("sys.argv", ["data", "documents", str(records), "--output", str(output)])
    data_command.main()
    (line,) = gzip.open(output, "rt").read().splitlines()
    assert json.loads(line)["text"] == document(1)
    before = records.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(records)
    for name in (records, tmp_path / "link.jsonl"):
        monkeypatch.setattr("sys.argv", ["data", "documents", str(records), "--output", str(name)])
        with pytest.raises(ClaraError, match="is one of the files that are read; name another"):
            data_command.main()
    assert records.read_bytes() == before


def test_passages_that_the_store_lacks(pipeline, tmp_path):
    asked = [*questions()[:2], CorpusQuestion("gone", "Where?", (), ("nowhere",))]
    results = measure(pipeline, asked, ["words"], Settings((1,)), tmp_path / "one", resamples=50, progress=False)
    assert (results["questions"], results["left_out"], results["lacking"]) == (2, 1, ["gone"])
    assert "1 are left out, as the store lacks a passage: gone\n" in whole_corpus.text(results)
    many = {**results, "left_out": 7, "lacking": [f"q{i}" for i in range(7)]}
    assert "lacks a passage: q0, q1, q2, q3, q4, ...\n" in whole_corpus.text(many)
    with pytest.raises(ClaraError, match="holds the passages of none of the 1 questions"):
        measure(pipeline, asked[2:], ["words"], Settings((1,)), tmp_path / "two", progress=False)


def test_the_command(place, tmp_path, monkeypatch, capsys):
    """Both forms of questions, answers and JSON; and the documents of records as a corpus."""
    records = [
        {
            "question": f"Where was number {i} born?",
            "docs": [document(i), document(i + 1)],
            "answer": "x",
            "pos_index": [0],
        }
        for i in range(4)
    ]
    recorded = write(tmp_path / "records.jsonl", [*records, {**records[0], "pos_index": []}])
    named = write(
        tmp_path / "named.jsonl",
        [{"question": "Where?", "gold_answers": ["there"], "gold_passage": "long", "source": "x"}],
    )
    corpus = tmp_path / "corpus.jsonl"
    monkeypatch.setattr("sys.argv", ["data", "documents", str(recorded), "--output", str(corpus)])
    data_command.main()
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert [line["text"] for line in lines] == [document(i) for i in range(5)] and len(
        {line["id"] for line in lines}
    ) == 5
    assert "5 passages of 5 records" in capsys.readouterr().out
    command = ["evaluate", "corpus", "--checkpoint", str(place / "checkpoint"), "--store", str(place / "store")]
    command += ["--questions", str(recorded), str(named), "--report", str(tmp_path / "report"), "--depth", "3", "1"]
    command += [
        "--answers",
        "--k",
        "2",
        "--max-new-tokens",
        "3",
        "--resamples",
        "50",
        "--json",
        "--how",
        "memory",
        "both",
    ]
    monkeypatch.setattr("sys.argv", command)
    evaluate.main()
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == 5 and list(found["searches"]) == ["memory", "both"]
    assert list(found["searches"]["memory"]) == ["recall@1", "recall@3", "mrr", "exact_match", "f1", "milliseconds"]
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "Where?", "gold_passage": 3}, '1: "gold_passage" must be the id of a document'),
        ({"question": "Where?", "gold_passages": ["a", 1]}, '1: "gold_passages" must be the id'),
        ({"gold_passage": "a"}, '1: "question" is missing'),
        ({"question": "Where?"}, '1: "docs" is missing'),
        ({"question": "Where?", "docs": ["a"]}, "holds no questions with the passages that answer them"),
        ([1], "must be a JSON object"),
    ],
)
def test_lines_that_are_no_questions(tmp_path, line, message):
    with pytest.raises(ClaraError, match=message):
        corpus_questions([str(write(tmp_path / "asked.jsonl", [line]))])


def test_questions_are_numbered_over_all_files(tmp_path):
    line = {"qid": "a", "question": "Where?", "gold_passages": ["d1", "d2", "d1"], "gold_answers": ["x", "y"]}
    path = str(write(tmp_path / "asked.jsonl", [line, line]))
    assert [question.id for question in corpus_questions([path, path], 1)] == ["a (2)", "a (2) (2)"]  # one of each file
    found = corpus_questions([path, path])
    assert [question.id for question in found] == ["a", "a (2)", "a (3)", "a (2) (2)"]
    assert found[0].documents == ("d1", "d2") and found[0].references == ("x", "y")
