"""Workers of shards: what they publish together is what one writer writes, once, whatever happens to them."""

import json
import random
import sys

import numpy as np
import pytest

from benchmarks import shards as shards_benchmark
from clara_jax import command
from clara_jax import compress as compress_command
from clara_jax.api import Clara
from clara_jax.errors import ClaraError
from clara_jax.retrieval import ann, indexing, publishing
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.retrieval.publishing import discard, publish
from clara_jax.retrieval.read_report import ReadReport
from clara_jax.retrieval.rows import METADATA
from clara_jax.retrieval.shards import Shard
from clara_jax.retrieval.staging import Files
from clara_jax.retrieval.verifying import damaged_chunks
from clara_jax.text.documents import CHUNK_FIELDS
from tests.test_rag_pipeline import checkpoint, pipeline, write_checkpoint  # noqa: F401
from tests.tiny import document

COLUMNS = [*CHUNK_FIELDS, "words", "key", "memory", "facts_checksum", "memory_checksum", "vector", *METADATA.names]


@pytest.fixture(scope="module")
def clara(checkpoint, mesh):  # noqa: F811
    return Clara.load(checkpoint, mesh=mesh, batch_size=4)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [
        {
            "id": f"line {i}",
            "title": f"Title {i}",
            "text": "\n\n".join(document(i + j) for j in range(1 + i % 7)),
            "n": i,
        }
        for i in range(40)
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    passages = [
        {"id": f"p{i}-{j}", "document": f"p{i}", "title": "", "text": document(i), "source": "x", "start": 0, "end": 1}
        for i in range(9)
        for j in range(2)
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in passages))
    for i in range(6):
        (folder / f"file {i}.md").write_text(f"# File {i}\n\n{document(100 + i)}\n")
    return folder


def stage(rag, corpus, index, count, done=lambda part: None):
    shard = Shard(index, count)
    return rag.stage(rag.read([str(corpus)], False, ReadReport(), shard.holds), shard, done)


def fill(rag, corpus):
    return rag.add(rag.read([str(corpus)], False, ReadReport()))


def hashed(model, params, role, texts, tokenizer, mesh, batch_size):
    """Memories that are a function of each text alone; in the last bits, the model's depend on the batch."""
    for i, ids in enumerate(texts):
        rng = np.random.default_rng(np.asarray(ids, np.int64))
        yield [i], rng.normal(size=(1, model.clara.memory_tokens, model.config.embed_dim)).astype(np.float32)


@pytest.fixture
def calls(monkeypatch):
    """The number of chunks of every call of the compressor, which is `hashed`."""
    sizes = []
    monkeypatch.setattr(indexing, "encode_texts", lambda *given: sizes.append(len(given[3])) or hashed(*given))
    return sizes


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(indexing, "FEWEST", 8)
    monkeypatch.setattr(indexing._Pace, "chunks", 8)


def rows(store):
    """All columns of all rows, by the id."""
    found = {row["id"]: row for batch in store.rows(COLUMNS, 1000) for row in batch.to_pylist()}
    assert len(found) == len(store)
    return found


def test_the_model_compresses_a_shard_as_the_whole_corpus(clara, corpus, tmp_path):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    publish(many.store)
    ids = sorted(one.store.index()[0])
    assert sorted(many.store.index()[0]) == ids
    np.testing.assert_allclose(many.store.memories(ids), one.store.memories(ids), atol=1e-5)
    assert many.answer("Where was Ada born?", k=3).context.sources


def test_shards_divide_every_corpus():
    names = [f"document {i}" for i in range(3000)]
    held = [[name for name in names if Shard(i, 3).holds(name)] for i in range(3)]
    assert sorted(sum(held, [])) == sorted(names) and min(map(len, held)) > 900
    with pytest.raises(ClaraError, match="numbered from 0 to 2"):
        Shard(3, 3)


def test_what_is_published_is_what_one_writer_writes(clara, corpus, tmp_path, calls, small_parts):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    expected = fill(one, corpus)
    parts = []
    for index in (2, 0, 1):  # in any order
        with pytest.raises(ClaraError, match=r"shards are not finished|nothing waits"):
            publish(many.store)
        stage(many, corpus, index, 3, parts.append)
    assert len(many.store) == 0 and many.documents()[1] == 0 and len(parts) > 6
    version = many.store.version
    assert publish(many.store) == expected
    # The rows in one commit; the second one is the index of words.
    assert many.store.version <= version + 2
    assert rows(many.store) == rows(one.store)
    assert many.store.documents(limit=1000) == one.store.documents(limit=1000)
    assert damaged_chunks(many.store) == []
    assert dict(many.store.words("painter Kyoto", 500)).keys() == dict(one.store.words("painter Kyoto", 500)).keys()
    # Nothing is left, nothing is published twice.
    assert not list((tmp_path / "many" / ".staged").rglob("*.json"))
    with pytest.raises(ClaraError, match="nothing waits"):
        publish(many.store)
    # The ordinary writer goes on with it.
    del calls[:]
    assert fill(many, corpus) == IndexReport(expected.documents, 0, expected.compressed, 0) and not any(calls)
    many.store.tidy(now=True)
    assert many.store.delete(["line 3"]) == 1 and len(rows(many.store)) == len(rows(one.store)) - 2
    fill(many, corpus)
    assert rows(many.store) == rows(one.store)


def test_only_what_is_new_or_changed_is_compressed_and_the_rest_replaced(clara, corpus, tmp_path, calls):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    for rag in (one, many):
        fill(rag, corpus)
        ann.build(rag.store)
    lines = [json.loads(line) for line in (corpus / "lines.jsonl").read_text().splitlines()[:-1]]
    lines[0]["text"] = document(300)  # shorter and other
    lines[6]["text"] += "\n\n" + document(301)  # longer
    lines[7]["n"] = "other"  # its metadata alone
    lines.append({"id": "new", "text": document(302)})
    (corpus / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    del calls[:]
    expected = fill(one, corpus)
    assert sum(calls) == expected.compressed
    del calls[:]
    for index in range(2):
        stage(many, corpus, index, 2)
    assert sum(calls) == expected.compressed
    assert publish(many.store) == expected
    found, wanted = rows(many.store), rows(one.store)
    for row in (*found.values(), *wanted.values()):  # each store has another basis
        assert len(row.pop("vector")) == 256
    assert found == wanted


def test_a_document_that_was_added_meanwhile_is_replaced(clara, corpus, tmp_path, calls):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "line 5", "text": document(900)}) + "\n")
    fill(many, tmp_path / "other.jsonl")
    assert publish(many.store).compressed
    assert rows(many.store) == rows(one.store)


def test_a_worker_goes_on_where_it_was(clara, corpus, tmp_path, calls, small_parts):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    expected = fill(one, corpus)
    del calls[:]
    seen = []

    def stop(part):
        seen.append(part)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(many, corpus, 0, 2, stop)
    assert sum(calls) == sum(part.compressed for part in seen)
    report = stage(many, corpus, 0, 2)
    assert sum(calls) == report.compressed  # nothing was compressed again
    assert stage(many, corpus, 0, 2) == report and sum(calls) == report.compressed
    # A part whose file has gone, and one whose record is damaged, are computed again.
    files = sorted((tmp_path / "many" / "chunks.lance" / "data").iterdir())
    files[0].unlink()
    stage(many, corpus, 1, 2)
    with pytest.raises(ClaraError, match=r"files of shards 0 have gone; run these shards again"):
        publish(many.store)
    records = sorted(Files(many.store, "2/0").names())
    path = Files(many.store, "2/0").path(next(name for name in records if name.startswith("0-")))
    path.write_text(path.read_text().replace('"report": [', '"report": [1'))
    del calls[:]
    assert stage(many, corpus, 0, 2) == report and 0 < sum(calls) < report.compressed
    # What another corpus left behind is not published.
    assert publish(many.store) == expected and rows(many.store) == rows(one.store)
    there = {path.name for path in (tmp_path / "many" / "chunks.lance" / "data").iterdir()}
    assert there == publishing._files(publishing.lance.dataset(many.store.table_url))


def test_a_corpus_that_changes_between_two_runs_of_a_worker(clara, corpus, tmp_path, calls):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    for index in range(2):
        stage(many, corpus, index, 2)
    lines = (corpus / "lines.jsonl").read_text().splitlines(keepends=True)
    (corpus / "lines.jsonl").write_text("".join([*lines[5:], json.dumps({"id": "z", "text": document(7)}) + "\n"]))
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    publish(many.store)
    assert rows(many.store) == rows(one.store)


def test_publishing_that_was_killed_is_done_again_without_doubles(clara, corpus, tmp_path, calls, monkeypatch):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    for module, name in ((ann, "finish"), (publishing, "_forget")):  # both after the commit
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, name, _interrupt)
            publish(many.store)
    staged = Files(many.store)
    staged.remove("2/1/done.json")
    publish(many.store)
    assert rows(many.store) == rows(one.store) and not [name for name in staged.names() if name.endswith("json")]


@pytest.mark.parametrize("place", ["before", "within"])
def test_what_is_staged_after_a_publication_was_killed_is_published(clara, corpus, tmp_path, calls, monkeypatch, place):
    """It would be taken for what is published already, and forgotten."""
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    for index in range(2):
        stage(many, corpus, index, 2)
    remove = Files.remove
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if place == "before":
            patched.setattr(publishing, "_forget", _interrupt)
        else:
            patched.setattr(
                Files, "remove", lambda files, name: (_interrupt if "done" in name else remove)(files, name)
            )
        publish(many.store)
    more = [{"id": f"more {i}", "text": document(700 + i)} for i in range(4)]
    (corpus / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more))
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    assert publish(many.store).compressed == 4
    assert rows(many.store) == rows(one.store)


def test_shards_of_several_corpora_are_not_published(clara, corpus, tmp_path, calls):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    for index in range(3):
        stage(many, corpus, index, 3)
    (corpus / "lines.jsonl").write_text((corpus / "lines.jsonl").read_text().replace('"line 7"', '"other 7"'))
    stage(many, corpus, 1, 3)
    message = r"of several corpora, .*: 55 documents \(shards 0, 2\) and 55 documents \(shards 1\); run all that"
    with pytest.raises(ClaraError, match=message):
        publish(many.store)
    for index in (0, 2):
        stage(many, corpus, index, 3)
    publish(many.store)
    fill(one, corpus)
    assert rows(many.store) == rows(one.store)


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"parts": []}', '{"checksum": "x", "parts": []}'])
def test_records_that_hold_something_else_count_as_none(clara, corpus, tmp_path, calls, content):
    one, many = pipeline(clara, tmp_path / "one"), pipeline(clara, tmp_path / "many")
    fill(one, corpus)
    for index in range(2):
        stage(many, corpus, index, 2)
    files = Files(many.store)
    (part,) = [name for name in files.names() if name.startswith("2/0/0-")]
    files.path(part).write_text(content)
    files.path("2/0/7-x.json").write_text(content)
    files.path("2/1/done.json").write_text(content)
    with pytest.raises(ClaraError, match="1 of 2 shards are not finished: 1; run them"):
        publish(many.store)
    for index in range(2):
        stage(many, corpus, index, 2)
    publish(many.store)
    assert rows(many.store) == rows(one.store)


def test_a_folder_that_cannot_be_locked(clara, corpus, tmp_path, calls):
    many = pipeline(clara, tmp_path / "many")
    (tmp_path / "many" / ".staged" / "2" / "0" / ".lock").mkdir(parents=True)  # where a file would have to be
    with pytest.raises(ClaraError, match="many: the store cannot be written: .*Is a directory"):
        stage(many, corpus, 0, 2)


def _interrupt(*given):
    raise KeyboardInterrupt


def test_parts_are_forgotten(clara, corpus, tmp_path):
    many = pipeline(clara, tmp_path / "many")
    stage(many, corpus, 0, 2)
    with pytest.raises(
        ClaraError, match=r"parts of 2 shards wait there, not of 3; go on with --shards 2, or .*--discard"
    ):
        stage(many, corpus, 0, 3)
    assert discard(many.store) > 0 and discard(many.store) == 0
    assert not list((tmp_path / "many" / "chunks.lance").glob("data/*"))
    assert stage(many, corpus, 0, 3).compressed


def test_one_worker_a_shard(clara, corpus, tmp_path):
    many = pipeline(clara, tmp_path / "many")

    def second(part):
        with pytest.raises(ClaraError, match="another process works on shard 0 of 2"):
            stage(pipeline(clara, tmp_path / "many"), corpus, 0, 2)

    stage(many, corpus, 0, 2, second)


def run(monkeypatch, capsys, *arguments):
    """The command's exit code, and what it has printed."""
    monkeypatch.setattr(sys, "argv", ["clara_jax.compress", *map(str, arguments)])
    code = 0
    try:
        command.run(compress_command.main)
    except SystemExit as stop:
        code = stop.code
    return code, "".join(capsys.readouterr())


def test_the_command(checkpoint, corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    model = ("--checkpoint", checkpoint, "--precision", "float32")
    store, given = ("--store", tmp_path / "store"), ("--corpus", corpus)
    for shard in (0, 1):
        code, said = run(monkeypatch, capsys, *model, *store, *given, "--shard", shard, "--shards", 2)
        assert code == 0 and f"shard {shard} of 2: " in said and "lines.jsonl:41: column 1: not JSON" in said
        code, said = run(monkeypatch, capsys, *store, "--publish")
        assert (code, "1 of 2 shards are not finished: 1; run them (--shard I --shards 2)" in said) == (
            (2, True) if shard == 0 else (0, False)
        )
    assert "store: published 55 documents, 91 chunks compressed, 0 unchanged, 0 removed" in said
    code, said = run(monkeypatch, capsys, *model, *store, *given)
    assert code == 0 and "55 documents, 0 chunks compressed, 91 unchanged, 0 removed" in said
    run(monkeypatch, capsys, *model, *store, *given, "--shard", 0, "--shards", 40)
    assert "parts forgotten" in run(monkeypatch, capsys, *store, "--discard")[1]
    # A shard of which there is no document is none to complain of.
    code, said = run(monkeypatch, capsys, *model, *store, *given, "--shard", 999, "--shards", 1000)
    assert code == 0 and "0 documents" in said
    for arguments, message in (
        ((*given, "--shard", 2, "--shards", 2), "shards are numbered from 0 to 1"),
        ((*given, "--shard", 1), "--corpus and --shards N go together with --shard I, or with --ray ADDRESS"),
        ((*given, "--shards", 2), "--corpus and --shards N go together with --shard I, or with --ray ADDRESS"),
        (("--shard", 1, "--shards", 2, "--list"), "--corpus and --shards N go together with --shard I"),
        ((*given, "--shard", 1, "--shards", 2, "--sync"), "--sync: not together with --shards"),
        (
            (*given, "--shard", 1, "--shards", 2, "--discard"),
            "--discard: not together with --shard: other workers' parts",
        ),
        ((*given, "--resources", "TPU=4"), "--resources: are of the workers of --ray"),
        ((*given, "--ray", "local", "--shards", 2, "--resources", "TPU"), "'TPU' must be a name and a positive number"),
        (("--publish", "--store", tmp_path / "none"), "no store is there"),
    ):
        code, said = run(monkeypatch, capsys, *store, *arguments)
        assert code == 2 and message in said and said.count("\n") == 1, said


def test_a_killed_worker(tmp_path):
    """The drill of ``python -m benchmarks.shards --kills``, with one; it fails where a chunk is not there once."""
    workers = shards_benchmark.Workers(tmp_path, 2, 120, 20.0, 0.2)
    workers.kill_workers(1, random.Random(0))
    shards_benchmark.published(workers.location)
    shards_benchmark.check(workers.location, 120)
    assert 120 <= workers.compressed() < 240


@pytest.mark.slow
def test_twenty_killed_workers(tmp_path):
    workers, rng = shards_benchmark.Workers(tmp_path, 4, 2400, 20.0, 2.0), random.Random(1)
    workers.kill_workers(20, rng)
    workers.kill_publishing(5, rng)
    shards_benchmark.check(workers.location, 2400)
