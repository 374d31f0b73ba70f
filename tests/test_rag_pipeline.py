"""A corpus is compressed once and asked many times: nothing is lost, doubled, or compressed again without need."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clara_jax import ask as ask_command
from clara_jax import compress as compress_command
from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.data import __main__ as data_command
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.method.clara import ClaraConfig
from clara_jax.model import precision as precisions
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval import document_store, indexing
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.serving.uploads import read_upload
from clara_jax.text.documents import CorpusDocument
from tests.data.corpus import write
from tests.drills.test_stores import Bucket
from tests.locations import ROOT
from tests.tiny import document, tokenizer, with_adapters, write_base


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, mesh):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), mesh)


def write_checkpoint(folder, mesh):
    """A saved model whose adapters do something."""
    base = write_base(folder / "base")
    clara = ClaraConfig(doc_max_length=64, compress_rate=8, lora_rank=4, max_length=384)
    path = folder / "checkpoint"
    with_adapters(opening.from_base(str(base), clara, mesh, "float32")).save(path, "end_to_end")
    return path


@pytest.fixture(scope="module")
def clara(checkpoint, mesh):
    return Clara.load(checkpoint, mesh=mesh, batch_size=4)


def pipeline(clara, path):
    bundle = clara.bundle
    sizes = bundle.model.clara.memory_tokens, bundle.model.config.embed_dim
    return RagPipeline(clara, DocumentStore.open_or_make(path, bundle.compressor_fingerprint(), "float32", *sizes))


def texts(*numbers):
    return [CorpusDocument(f"d{i}", "", document(i), "") for i in numbers]


def test_files_that_are_sent_do_not_replace_each_other(clara, tmp_path):
    """They have a kind and no path: two of one kind are not one file that was renamed."""
    rag = pipeline(clara, tmp_path / "store")
    for number in (1, 2, 1):
        sent = read_upload(document(number).encode(), f"notes/{number}.md", 10_000, rag.read_files)
        rag.add(sent.documents)
    assert [one.id for one in rag.documents()[0]] == ["notes/1.md", "notes/2.md"]


def contents(store):
    ids, keys = store.index()
    return {name: (key, memory.tobytes()) for name, key, memory in zip(ids, keys, store.memories(ids), strict=True)}


def test_only_what_is_new_or_changed_is_compressed(clara, tmp_path, monkeypatch):
    rag = pipeline(clara, tmp_path / "store")
    compressed = []
    monkeypatch.setattr(
        indexing, "encode_texts", lambda *a, real=indexing.encode_texts: compressed.append(len(a[3])) or real(*a)
    )
    assert rag.add(texts(1, 2, 3)) == IndexReport(3, 3, 0, 0)
    before = contents(rag.store)
    # What Clara.compress makes of the same texts.
    memories = clara.compress([document(i) for i in (1, 2, 3)]).array
    np.testing.assert_allclose(rag.store.memories(["d1#0", "d2#0", "d3#0"]), memories, atol=1e-5)
    version = rag.store.version
    assert rag.add(texts(1, 2, 3)) == IndexReport(3, 0, 3, 0) and rag.store.version == version
    assert rag.add([*texts(1), CorpusDocument("d2", "", document(7), "")]) == IndexReport(2, 1, 1, 0)
    assert contents(rag.store)["d1#0"] == before["d1#0"] and contents(rag.store)["d2#0"] != before["d2#0"]
    # A longer document, then a shorter one: what is cut off goes; what moved within it is not compressed again.
    parts = [document(i) for i in range(20, 28)]
    long = rag.add([CorpusDocument("long", "", "\n\n".join(parts), "")])
    assert long.compressed > 2
    ids = [name for name in rag.store.index()[0] if name.startswith("long#")]
    assert len(ids) == long.compressed
    last = rag.store.chunks([f"long#{len(ids) - 1}"])[0].text
    assert rag.add([CorpusDocument("long", "", last, "")]) == IndexReport(1, 0, 1, len(ids) - 1)
    assert [name for name in rag.store.index()[0] if name.startswith("long")] == ["long#0"]
    assert rag.delete(["long", "d1"]) == 2 and set(contents(rag.store)) == {"d2#0", "d3#0"}
    assert compressed.count(0) == 2


@pytest.mark.parametrize("missing_bos", ["omit", "memory_token"])
def test_a_text_has_the_same_chunks_keys_and_memories_everywhere(tmp_path, mesh, monkeypatch, missing_bos):
    """The Python API, a store, and the corpus command, whose lines a store then reads; with a bos and without."""
    folder = write_base(tmp_path / "base")
    without = tokenizer()
    without.bos_token = None
    without.save_pretrained(folder)
    config = ClaraConfig(doc_max_length=16, compress_rate=8, lora_rank=4, max_length=384, missing_bos=missing_bos)
    clara = Clara(opening.from_base(str(folder), config, mesh, "float32"), batch_size=4)
    assert (clara.bundle.tokenizer.bos_id is None) == (missing_bos == "omit")
    # At the limit and beyond, with blanks around, in paragraphs, and with a word that is too long alone.
    written = [" ".join("xyz" * 9)[: 2 * length - 1] for length in (15, 16, 17, 18, 19)]
    written += [f"  {document(1)}\n", "\n\n".join(map(document, range(4))), "x" * 90]
    documents = [CorpusDocument(f"d{i}", "", text, "") for i, text in enumerate(written)]

    memories = clara.compress(written, [one.id for one in documents])
    whole = pipeline(clara, tmp_path / "whole")
    whole.add(documents)
    lines = tmp_path / "documents.jsonl"
    lines.write_text("".join(json.dumps({"id": one.id, "text": one.text}) + "\n" for one in documents))
    clara.bundle.tokenizer.save(tmp_path / "tokenizer")
    options = ("--tokenizer", tmp_path / "tokenizer", "--max-tokens", 16, "--near-duplicates", "off")
    given = ("--input", lines, "--output", tmp_path / "corpus.jsonl", *options)
    run_command(data_command, monkeypatch, "corpus", *given)
    cut = pipeline(clara, tmp_path / "cut")
    cut.add(cut.read([str(tmp_path / "corpus.jsonl")]))

    ids = [name if "#" in name else f"{name}#0" for name in memories.ids]
    assert len(ids) > len(documents) + 5 and max(chunk.tokens for chunk in whole.store.chunks(ids)) == 16
    assert contents(whole.store) == contents(cut.store) and set(contents(cut.store)) == set(ids)
    assert [chunk.text for chunk in whole.store.chunks(ids)] == list(memories.texts)
    np.testing.assert_allclose(whole.store.memories(ids), memories.array, atol=1e-5)


def test_the_precision_is_that_of_the_memories_else_that_for_the_processor(checkpoint, mesh, tmp_path, monkeypatch):
    def opened(store, precision=None):
        return RagPipeline.open(checkpoint, tmp_path / store, create=True, precision=precision, mesh=mesh)

    monkeypatch.setattr(precisions, "has_instructions", lambda: True)
    opened("mixed")
    opened("float32", "float32")
    for there in (True, False):
        monkeypatch.setattr(precisions, "has_instructions", lambda there=there: there)
        usual = "mixed" if there else "float32"
        for store, asked in (("mixed", "mixed"), ("float32", "float32"), (f"new {there}", usual)):
            bundle = opened(store).clara.bundle
            assert (store, bundle.model.precision) == (store, asked)
            kernel = bundle.params["base"]["layers"]["mlp"]["up"]["kernel"]["up"]
            assert kernel.dtype == bundle.model.base_dtype
    with pytest.raises(ClaraError, match="holds memories of another compressor, or of this one in another precision"):
        opened("mixed", "float32")


def test_two_documents_with_one_id_in_one_call_are_refused_by_the_reader(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    with pytest.raises(ClaraError, match="holds no text"):
        rag.add([CorpusDocument("blank", "", "  ", "")])
    with pytest.raises(ClaraError, match="'x' twice"):
        rag.add([CorpusDocument("x", "", document(1), ""), CorpusDocument("x", "", document(2), "")])
    assert len(rag.store) == 0


def test_another_writer_in_between(clara, tmp_path, monkeypatch):
    """While one compresses, another puts a longer version of the same document there: in the end it is one of them."""
    one, other = pipeline(clara, tmp_path / "store"), pipeline(clara, tmp_path / "store")
    real, calls = indexing.encode_texts, []

    def encode(*arguments):
        if not calls:
            calls.append(1)
            other.add([CorpusDocument("x", "", "\n\n".join(document(i) for i in range(9)), "")])
        return real(*arguments)

    monkeypatch.setattr(indexing, "encode_texts", encode)
    one.add([CorpusDocument("x", "", document(1), "")])
    assert one.store.index()[0] == ["x#0"] and one.store.chunks(["x#0"])[0].text == document(1)


@pytest.mark.parametrize("bucket", [False, True])
def test_two_writers_at_once(clara, tmp_path, monkeypatch, bucket):
    """Each with another version of some documents: these are the one's or the other's; all others are there. In a
    bucket no file is locked."""
    if bucket:
        monkeypatch.setattr(document_store, "Locks", Bucket)
    monkeypatch.setattr(indexing._Pace, "chunks", 4)  # commit after commit, in turns
    monkeypatch.setattr(indexing, "MOST", 4)
    path = f"file://{tmp_path}/store"
    one, other = pipeline(clara, path), pipeline(clara, path)
    mine = {f"d{i}": document(i) for i in range(40)}
    theirs = {f"d{i}": document(1000 + i) for i in range(20, 60)}

    def fill(rag, version):
        rag.add(CorpusDocument(name, "", text, "") for name, text in version.items())

    with ThreadPoolExecutor() as pool:
        for writer in [pool.submit(fill, one, mine), pool.submit(fill, other, theirs)]:
            writer.result()
    store = DocumentStore.open(path)
    ids = store.index()[0]
    assert sorted(ids) == sorted(f"{name}#0" for name in mine | theirs)
    for chunk, memory in zip(store.chunks(ids), store.memories(ids), strict=True):
        assert chunk.text in (mine.get(chunk.document), theirs.get(chunk.document))
        np.testing.assert_allclose(memory, clara.compress([chunk.text]).array[0], atol=1e-5)


def test_a_store_keeps_its_encoding(checkpoint, tmp_path):
    """New ones are of bytes; one that is there, from before that was the default, stays as it is."""
    made = RagPipeline.open(checkpoint, tmp_path / "new", create=True)
    made.add(texts(0))
    assert made.store.encoding.name == "int8"
    old = RagPipeline.open(checkpoint, tmp_path / "old", create=True, encoding="float16")
    old.add(texts(0))
    for create in (True, False):
        assert RagPipeline.open(checkpoint, tmp_path / "old", create=create).store.encoding.name == "float16"
    with pytest.raises(ClaraError, match="holds memories as float16, not int8"):
        RagPipeline.open(checkpoint, tmp_path / "old", create=True, encoding="int8")


def test_a_store_of_bytes(clara, tmp_path):
    """int8 memories find and answer as whole ones do, up to their rounding."""
    whole = pipeline(clara, tmp_path / "whole")
    bundle = clara.bundle
    sizes = bundle.model.clara.memory_tokens, bundle.model.config.embed_dim
    small = DocumentStore.open_or_make(tmp_path / "small", bundle.compressor_fingerprint(), "int8", *sizes)
    small = RagPipeline(clara, small)
    for rag in (whole, small):
        rag.add(texts(*range(12)))
    assert small.stats()["memory_bytes"] < 0.3 * whole.stats()["memory_bytes"]
    exact, rounded = (rag.answer("Where was Ada number 0 born?", k=3, candidates=12) for rag in (whole, small))
    scores = {hit.id: hit.score for hit in exact.context.hits}
    for hit in rounded.context.hits:
        assert hit.score == pytest.approx(scores[hit.id], abs=0.02)
    assert rounded.tokens


def test_an_answer_is_that_of_the_same_documents(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    rag.add(texts(*range(12)))
    question = "Where was Ada number 0 born?"
    answer = rag.answer(question, k=3, candidates=6)
    direct = clara.answer([question], [[document(i) for i in range(12)]], k=3)[0]
    assert answer.text == direct.text and answer.tokens == direct.tokens
    assert [hit.document for hit in answer.context.sources] == [f"d{source.id}" for source in direct.sources]
    np.testing.assert_allclose(
        [hit.score for hit in answer.context.sources], [source.score for source in direct.sources], atol=1e-5
    )
    assert len(answer.context.hits) == 6 and answer.context.selected == 3
    assert set(answer.milliseconds) >= {"read", "answer"}
    assert answer.context.compress_ratio == sum(hit.tokens for hit in answer.context.sources) / (3 * 8)
    # The text beside the memory changes what is read; a threshold above any cosine ends in no answer.
    expanded = rag.ask(question, k=3, expand=1)
    assert expanded.prompt_tokens > answer.context.prompt_tokens
    assert expanded.hits[0].text in rag.text(expanded.request.ids)
    silent = rag.answer(question, k=3, abstain_below=1.1)
    assert silent.text is None and silent.context.request is None and silent.context.hits
    only = rag.answer(question, k=3, where="document = 'd5'").context.hits
    assert [hit.document for hit in only] == ["d5"]
    rag.finish()
    assert {hit.document for hit in rag.search("painter", k=12, how="words")} == {f"d{i}" for i in range(12)}
    empty = pipeline(clara, tmp_path / "empty").answer(question)
    assert empty.text is None and not empty.context.hits


def test_what_is_not_said_is_as_the_model_learned(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    rag.add(texts(*range(12)))
    rag.finish()
    question = f"What is told of {document(7)[:30]}?"
    asked = rag.ask(question)
    assert asked.selected == 5 and asked.hits == rag.ask(question, how="memory").hits  # no stage says how many it read
    learned = dataclasses.replace(clara.bundle, trained=("lora/generator",), history=({"stage": "a", "top_k": 2},))
    other = RagPipeline(Clara(learned, batch_size=4), rag.store)
    asked = other.ask(question)
    assert asked.selected == 2 and asked.hits == rag.ask(question, how="words").hits
    assert other.search(question, 3) == rag.search(question, 3, "words") != rag.search(question, 3, "memory")
    assert other.ask(question, k=3, how="memory").selected == 3


def test_a_conversation_is_searched_with_and_read(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    rag.add(texts(*range(12)))
    question, history = "Where was he born?", [("user", "Who is Rollo?"), ("assistant", "A painter.")]
    alone, asked = rag.ask(question, k=2), rag.ask(question, k=2, history=history)
    assert (alone.searched, alone.turns) == (question, 0)
    assert (asked.searched, asked.turns) == (f"Who is Rollo?\n{question}", 2)
    assert asked.hits == rag.ask(asked.searched, k=2).hits and asked.question == question
    read = rag.text(asked.request.ids)
    assert "\n\nConversation:\nUser: Who is Rollo?\nAssistant: A painter.\n\nQuestion:Where was he born?" in read
    # What was said first is what a long one loses.
    long = rag.ask(question, k=2, history=[("user", f"What about town {i}?") for i in range(90)])
    read = rag.text(long.request.ids)
    assert 0 < long.turns < 32 and "about town 89?" in read and "about town 20?" not in read
    assert long.searched.endswith(f"about town 89?\n{question}") and "about town 20?" not in long.searched


@pytest.mark.parametrize(
    "options, words",
    [
        ({"k": 0}, "k is 0"),
        ({"how": "both", "abstain_below": 0.5}, "abstain_below"),
        ({"how": "guess"}, "how: 'guess'"),
        ({"where": "colour = 'red'"}, "where"),
        ({"k": 12, "expand": 12}, "above max_length 384"),
    ],
)
def test_mistakes_are_said_in_words(clara, tmp_path_factory, options, words):
    rag = pipeline(clara, tmp_path_factory.mktemp("store"))
    rag.add(texts(*range(12)))
    with pytest.raises(ClaraError, match=words):
        rag.ask("Where was Ada number 0 born?", **options)
    with pytest.raises(ClaraError, match="empty"):
        rag.ask(" ")


def test_what_is_usual_follows_the_training(clara, tmp_path):
    store = pipeline(clara, tmp_path).store
    rag = RagPipeline(Clara(dataclasses.replace(clara.bundle, trained=(), history=())), store)
    assert (rag.usual_k, rag.usual_how) == (5, "words"), "nothing says how many, and no stage has learned to rank"
    history = ({"stage": "instruct", "top_k": 2}, {"stage": "import"})
    trained = dataclasses.replace(clara.bundle, trained=("lora/query_reasoner",), history=history)
    rag = RagPipeline(Clara(trained), store)
    assert (rag.usual_k, rag.usual_how) == (2, "memory") and rag.defaults == {"k": 2, "how": "memory"}
    rag.add(texts(1, 2, 3))
    assert len(rag.search("Who?")) == 2 and rag.ask("Who?").selected == 2 and not rag.ask("Who?", k=1).warnings
    with pytest.warns(ClaraWarning, match="trained to read 2"):
        assert "k: 3 documents are read" in rag.ask("Who?", k=3).warnings[0]


def test_documents_that_the_model_cannot_read_are_warned_of_once(clara, tmp_path):
    rag = pipeline(Clara(clara.bundle, batch_size=4), tmp_path / "store")
    greek = [CorpusDocument("g", "", "Η θάλασσα είναι ήρεμη σήμερα.", "")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rag.add(texts(1, 2))
    with pytest.warns(ClaraWarning, match="tokenizer does not know"):
        rag.add(greek)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rag.add([dataclasses.replace(greek[0], id="again")])
    assert "tokenizer does not know" in rag.unread(rag.chunk(greek)) and rag.unread(rag.chunk(texts(1))) is None


def test_an_embedding_is_the_mean_of_the_memory_vectors(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    written = [document(1), "\n\n".join(map(document, range(8)))]  # one chunk, and several
    memories = clara.compress(written)
    expected = []
    for name in "01":
        rows = [row for row, one in enumerate(memories.documents) if one == name]
        pooled = memories.array[rows].reshape(-1, memories.array.shape[2]).mean(axis=0)
        expected.append(pooled / np.linalg.norm(pooled))
    assert memories.documents.count("1") > 1
    np.testing.assert_allclose(rag.embed(written), expected, atol=1e-5)
    query = clara.encode_questions(["Who?"])[0].mean(axis=0)
    np.testing.assert_allclose(rag.embed(["Who?"], query=True)[0], query / np.linalg.norm(query), atol=1e-5)


def corpus_file(path, count):
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": document(i)}) + "\n" for i in range(count)))
    return path


def run_command(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()


def test_the_commands(checkpoint, tmp_path, monkeypatch, capsys):
    corpus, store = corpus_file(tmp_path / "corpus.jsonl", 40), tmp_path / "store"
    fill = ("--checkpoint", checkpoint, "--store", store, "--corpus", corpus)
    run_command(compress_command, monkeypatch, *fill)
    assert "40 documents, 40 chunks compressed, 0 unchanged, 0 removed" in capsys.readouterr().out
    run_command(compress_command, monkeypatch, *fill, "--stats", "--index")
    out = capsys.readouterr().out
    stats = json.loads(out[out.index("{") :])
    assert "0 chunks compressed, 40 unchanged" in out and stats["encoding"] == "int8", "the default of a new store"
    texts = [json.loads(line)["text"].encode() for line in corpus.read_text("utf-8").splitlines()]
    assert stats["text_bytes"] == sum(map(len, texts)) and stats["text_bytes_per_chunk"] == stats["text_bytes"] / 40
    assert stats["memory_bytes"] == stats["memory_tokens"] * (stats["width"] + 4)
    assert stats["memory_times_text"] == round(stats["memory_bytes"] / stats["text_bytes_per_chunk"], 2)
    assert stats["bytes_per_chunk"] == round(stats["bytes"] / 40, 1) > stats["memory_bytes"]
    assert DocumentStore.open(store).projection() is not None
    run_command(compress_command, monkeypatch, "--store", store, "--delete", "d3", "nothing", "--verify", "--compact")
    out = capsys.readouterr().out
    assert "1 of 2 documents deleted" in out and "39 chunks are as they were written" in out and "compacted" in out

    question = "Where was Ada number 0 born?"
    asked = ("--checkpoint", checkpoint, "--max-new-tokens", 4, "--k", 2)
    run_command(ask_command, monkeypatch, question, "--store", store, "--json", *asked)
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == question and len(found["candidates"]) == 20 and found["selected"] == 2
    run_command(ask_command, monkeypatch, question, "--documents", corpus, "--where", "document = 'd7'", *asked)
    assert "1. " in (out := capsys.readouterr().out) and "d7#0" in out and "tokens" in out
    behind = (*asked, "--where", "document = 'd7'", "--documents", corpus, question)  # as people write it
    run_command(ask_command, monkeypatch, *behind)
    assert capsys.readouterr().out.splitlines()[:-1] == out.splitlines()[:-1]  # the last one has times
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\n{question}\nWho?\n"))  # one after another, until there are none
    run_command(ask_command, monkeypatch, "--store", store, "--json", *asked)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["question"] for one in answers] == [question, "Who?"] and answers[0]["answer"] == found["answer"]
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?"}\n{"question": "Where?"}\n')
    run_command(
        ask_command, monkeypatch, "--questions", tmp_path / "questions.jsonl", "--store", store, "--json", *asked
    )
    assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == ["Who?", "Where?"]


@pytest.mark.parametrize(
    "module, arguments, words",
    [
        (compress_command, ["--store", "s"], "nothing to do"),
        (compress_command, ["--store", "nowhere", "--stats"], "no store is there"),
        (compress_command, ["--store", "s", "--corpus", "c.jsonl", "--checkpoint", "nowhere"], "no such directory"),
        (ask_command, ["What?", "--checkpoint", "c"], "either --store or --documents"),
        (ask_command, ["What?", "--checkpoint", "c", "--store", "s", "--questions", "f"], "either a question"),
    ],
)
def test_mistakes_of_the_commands(module, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClaraError, match=words):
        run_command(module, monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_corpus_is_found_before_anything_is_compressed(checkpoint, tmp_path, monkeypatch):
    corpus = corpus_file(tmp_path / "corpus.jsonl", 100)
    corpus.write_text(corpus.read_text() + '{"text": 7}\n')
    with pytest.raises(ClaraError, match=r"corpus.jsonl:101: \"text\""):
        run_command(
            compress_command,
            monkeypatch,
            *("--checkpoint", checkpoint, "--store", tmp_path / "s", "--corpus", corpus, "--strict"),
        )
    assert len(DocumentStore.open(tmp_path / "s")) == 0


def test_a_folder_as_people_have_it(checkpoint, tmp_path, monkeypatch, capsys):
    """One call for all of it, with a table at the end; what is gone goes, and what only cannot be read stays."""
    notes, store = tmp_path / "notes", tmp_path / "store"
    names = ("a.txt", "deep/b.md", "c.txt")
    files = {name: document(number) for number, name in enumerate(names)}
    files |= {"d.csv": "name,town\nAda,Ulm\n", "copy.txt": document(0), "empty.txt": "", "junk.docx": "no archive"}
    write(notes, files | {"lines.jsonl": '{"id": "l", "text": "One line.", "year": 1931}\n{\n', "p.png": "x"})
    fill = ("--checkpoint", checkpoint, "--store", store, "--sync", "--list", "--corpus")

    def call(*arguments, module=compress_command):
        run_command(module, monkeypatch, *arguments)
        return capsys.readouterr()

    out = call(*fill, notes).out
    assert "5 documents, 5 chunks compressed, 0 unchanged" in out and "0 documents removed" in out
    table = out[out.index("kind") :]
    assert "skipped: 3\n" in table and f"  {notes}/empty.txt: holds no text\n" in table
    assert f"  {notes}/lines.jsonl:2: " in table and f"  {notes}/junk.docx: is no Word file" in table
    assert f"  {notes}/copy.txt: as {notes}/a.txt" in table and "passed over: 1 .png" in table
    kept = DocumentStore.open(store)
    ids = ["a.txt", "c.txt", "d.csv", "deep/b.md", "l"]
    assert [one.id for one in kept.documents()[0]] == ids and all(f"  {name}\n" in out for name in ids)
    assert kept.where("fields.year > 1900 AND type = 'jsonl'") == ["l#0"]

    monkeypatch.chdir(notes / "deep")
    assert "0 chunks compressed, 5 unchanged, 0 removed" in call(*fill, "..").out
    (notes / "c.txt").unlink()
    (notes / "d.csv").write_text("")
    out = call(*fill, "../").out
    assert "1 documents removed\n  c.txt\n" in out and "d.csv: holds no text" in out
    assert [one.id for one in DocumentStore.open(store).documents()[0]] == ["a.txt", "d.csv", "deep/b.md", "l"]
    # Named below another folder, a file has another id, and is not there twice; nothing is compressed anew.
    assert "1 documents, 0 chunks compressed, 1 unchanged, 1 removed" in call(*fill[:-2], "--corpus", ".").out
    assert [one.id for one in DocumentStore.open(store).documents()[0]] == ["a.txt", "b.md", "d.csv", "l"]

    asked = ("--checkpoint", checkpoint, "--max-new-tokens", 2, "--k", 1, "--documents", notes)
    said = call("Where?", *asked, "--where", "type = 'markdown'", module=ask_command)
    assert "deep/b.md#0" in said.out and "skipped: 4" in said.err and "skipped" not in said.out
    with pytest.raises(ClaraError, match="d.csv: holds no text"):
        call("Where?", *asked, "--strict", module=ask_command)
    with pytest.raises(ClaraError, match="nothing could be read; the first of 1: .*empty.txt: holds no text"):
        call("Where?", *asked[:-1], notes / "empty.txt", module=ask_command)
    with pytest.raises(ClaraError, match="--sync: give the folders"):
        call("--store", store, "--sync", "--stats")


def test_texts_alone(clara, tmp_path):
    rag = pipeline(clara, tmp_path / "store")
    assert rag.add([document(1), document(2), document(1)]) == IndexReport(2, 2, 0, 0)
    assert rag.add(document(2)) == IndexReport(1, 0, 1, 0) and len(rag.store) == 2
    with pytest.raises(ClaraError, match="holds no text"):
        rag.add([" "])


def versions(path, version, count=400):
    """Writes documents of one to three chunks; the next version of each has other chunks, and another number of
    them. Document -> its text without spaces."""
    documents = []
    for i in range(count):
        parts = 1 + 4 * ((i + version) % 3)
        documents.append((f"d{i}", [document(10_000 * version + 9 * i + part) for part in range(parts)]))
    path.write_text("".join(json.dumps({"id": name, "text": "\n\n".join(parts)}) + "\n" for name, parts in documents))
    return {name: "".join("".join(parts).split()) for name, parts in documents}


def said(store):
    """Document -> its chunks' texts in order, without spaces; each chunk stands there once."""
    ids = store.index()[0]
    assert len(ids) == len(set(ids))
    parts = {}
    for chunk in sorted(store.chunks(ids), key=lambda chunk: chunk.start):
        parts.setdefault(chunk.document, []).append(chunk.text)
    return {name: "".join("".join(texts).split()) for name, texts in parts.items()}


def test_a_killed_compression_loses_and_doubles_nothing(checkpoint, tmp_path):
    killed_compression(checkpoint, tmp_path, kills=1, documents=100)


def killed_compression(checkpoint, tmp_path, kills, documents):
    """Killed at random moments of its work, again and again: first over an empty store, then over one with an older
    version of every document. Whenever that is, a document is there as it was or as it is."""
    store, corpus, bar, rng = tmp_path / "store", tmp_path / "corpus.jsonl", tmp_path / "bar", random.Random(kills)
    command = [sys.executable, "-m", "clara_jax.compress", "--checkpoint", str(checkpoint), "--corpus", str(corpus)]
    command += ["--encoding", "float32", "--store"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}

    @contextlib.contextmanager
    def compressing(place):
        """From the moment on that documents are compressed."""
        with (
            open(bar, "w") as errors,
            subprocess.Popen([*command, str(place)], stderr=errors, env=environment) as process,
        ):
            began = time.monotonic()
            while "compressing" not in bar.read_text():
                assert process.poll() is None and time.monotonic() - began < 300
                time.sleep(0.02)
            yield process

    valid, hits = [versions(corpus, 0, documents)], 0
    with compressing(tmp_path / "timed") as process:
        began = time.monotonic()
        assert process.wait() == 0
    seconds = time.monotonic() - began
    while hits < kills:
        with compressing(store) as process:
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            hit = process.wait() == -signal.SIGKILL
        there = said(DocumentStore.open(store))
        assert all(text in (version[name] for version in valid) for name, text in there.items())
        hits += hit
        if not hit:
            seconds *= 0.8  # it had ended before: the machine is faster now
        if not hit or hits % 3 == 0:  # else the next one goes on with what was stopped
            valid.append(versions(corpus, len(valid), documents))
    for place in (store, tmp_path / "whole"):
        with compressing(place) as process:
            assert process.wait() == 0
    found, expected = DocumentStore.open(store), DocumentStore.open(tmp_path / "whole")
    assert said(found) == said(expected) == valid[-1]
    ids = sorted(expected.index()[0])
    assert sorted(found.index()[0]) == ids and found.chunks(ids) == expected.chunks(ids)
    np.testing.assert_allclose(found.memories(ids), expected.memories(ids), atol=1e-5)


@pytest.mark.slow
def test_several_processes_fill_one_store(checkpoint, tmp_path):
    """Two processes of two devices each; what changes between two calls is compressed by both, and written once."""
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    command = [sys.executable, "-m", "clara_jax.compress", "--checkpoint", str(checkpoint), "--corpus", str(corpus)]
    command += ["--encoding", "float32", "--store"]

    def run(count, place):
        launcher = [str(ROOT / "launch/local.sh"), str(count)] if count > 1 else []
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // count)}
        done = subprocess.run(
            [*launcher, *command, str(place)], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    versions(corpus, 0)
    assert run(2, store).count(": 400 documents, ") == 1  # said by one process of both
    last = versions(corpus, 1)
    run(2, store)
    run(1, tmp_path / "alone")
    found, expected = DocumentStore.open(store), DocumentStore.open(tmp_path / "alone")
    assert said(found) == said(expected) == last
    ids = expected.index()[0]
    assert found.chunks(ids) == expected.chunks(ids)
    np.testing.assert_allclose(found.memories(ids), expected.memories(ids), atol=1e-5)
    assert "0 chunks compressed" in run(2, store)
