"""The command, end to end: every data set, every stage, what it reports, and what it leaves when it fails."""

import argparse
import gzip
import json

import pytest

from clara_jax.data.importers.command import NO_ANSWER, add_arguments, run
from clara_jax.data.importers.registry import IMPORTERS
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.records import parse_record, read_records
from tests.data.importers import published
from tests.data.importers.published import write_json, write_lines


def command(name, inputs, output, *options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    run(parser.parse_args([name, "--input", *map(str, inputs), "--output", str(output), *map(str, options)]))
    return [value for _, value in read_json_lines(str(output))]


def made(name, folder):
    """A file of a data set as it is published."""
    if name == "beir":
        return published.beir(folder)
    if name in ("squad", "hotpotqa", "2wiki", "dpr"):
        make = {"squad": published.squad, "hotpotqa": published.hotpotqa, "2wiki": published.two_wiki}
        return write_json(folder / "in.json", make.get(name, published.dpr)())
    make = {"musique": published.musique, "nq-open": published.nq_open}
    return write_lines(folder / "in.jsonl", make.get(name, published.lost_in_the_middle)())


@pytest.fixture
def corpus(tmp_path):
    return write_lines(tmp_path / "corpus.jsonl", [{"title": f"T{i}", "text": f"text {i}"} for i in range(30)])


CASES = [
    (name, stage)
    for name, importer in IMPORTERS.items()
    for stage in (("retrieval",) if not importer.answered else ("instruct", "end_to_end", "retrieval"))
    if (name, stage) != ("nq-open", "retrieval")  # no gold is known
]


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_records_are_of_their_stage(name, stage, tmp_path, corpus):
    mode = ["--mode", "normal", "--corpus", corpus] if name == "nq-open" else ["--mode", "oracle"]
    out = tmp_path / "out.jsonl"
    lines = command(name, made(name, tmp_path), out, "--stage", stage, *mode)
    records = read_records(out, stage)
    assert len(records) == len(lines) > 0
    for line, record in zip(lines, records, strict=True):
        assert record == parse_record(line, stage, record.where)
        assert record.qid == line["qid"] and record.answers[0] == line["answer"]
        assert set(line) == {"qid", "question", "docs", "answer", "golden_answers", "pos_index"}
        assert len(record.documents) <= (5 if stage == "instruct" else 20)
        if name != "nq-open":
            assert record.positives
            assert len(record.documents) > 1
        if name == "beir":
            assert record.answers == (NO_ANSWER,)


def test_titles_stand_above_the_text(tmp_path):
    path = made("hotpotqa", tmp_path)
    (line, _) = command("hotpotqa", path, tmp_path / "out.jsonl")
    assert "Ann Lee\nAnn Lee wrote The Harbour. She lives in Oslo." in line["docs"]
    assert {line["docs"][i].partition("\n")[0] for i in line["pos_index"]} == {"Ann Lee", "The Harbour"}
    (line, _) = command("hotpotqa", path, tmp_path / "out.jsonl", "--no-titles")
    assert "Ann Lee wrote The Harbour. She lives in Oslo." in line["docs"]


def test_report(tmp_path, capsys):
    command("squad", write_json(tmp_path / "dev.json", published.squad("2.0")), tmp_path / "out.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path}/out.jsonl: 3 records for end_to_end",
        "gold documents found by bm25 among 2 documents: @1 1.000, @5 1.000, @20 1.000",
        "fewer than 20 candidates: 3 records, the corpus has no more",
        "skipped: 1 unanswerable",
    ]
    data = published.hotpotqa()
    data[0]["context"].append(["Fjord", ["A fjord near Oslo."]])
    arguments = "hotpotqa", write_json(tmp_path / "x.json", data), tmp_path / "out.jsonl"
    first, _ = command(*arguments)
    assert "answer-bearing documents that are not gold: 2 in 1 of 2 questions, kept;" in capsys.readouterr().out
    assert "Fjord\nA fjord near Oslo." in first["docs"]
    first, _ = command(*arguments, "--drop-answer-bearing")
    assert "answer-bearing documents that are not gold: 2 in 1 of 2 questions, left out" in capsys.readouterr().out
    assert "Fjord\nA fjord near Oslo." not in first["docs"]


def test_normal_mode_over_a_corpus_of_ones_own(tmp_path, corpus):
    """A corpus that was written by --stage corpus finds the gold documents again; another has none."""
    path = made("musique", tmp_path)
    written = tmp_path / "written.jsonl.zst"
    command("musique", path, written, "--stage", "corpus")
    normal = ["--mode", "normal", "--candidates", "2", "--corpus"]
    first, _ = command("musique", path, tmp_path / "out.jsonl", *normal, written, corpus)
    assert first["pos_index"] == [
        i for i, text in enumerate(first["docs"]) if text.startswith(("Ann Lee\n", "Bergen\n"))
    ]
    assert first["pos_index"]
    first, _ = command("musique", path, tmp_path / "out.jsonl", *normal, corpus)
    assert first["pos_index"] == [] and len(first["docs"]) == 2
    with pytest.raises(ClaraError, match="nothing is left to write .*2 no gold document among the candidates"):
        command("musique", path, tmp_path / "none.jsonl", *normal, corpus, "--stage", "retrieval")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("name", ["musique", "beir"])
def test_queries_and_corpus_fit_together(name, tmp_path):
    path = made(name, tmp_path)
    documents = command(name, path, tmp_path / "c.jsonl", "--stage", "corpus")
    queries = command(name, path, tmp_path / "q.jsonl.gz", "--stage", "queries")
    ids = [document["id"] for document in documents]
    assert len(set(ids)) == len(ids) == (4 if name == "beir" else 3)
    assert all(query["gold"] and set(query["gold"]) <= set(ids) for query in queries)
    assert [query["golden_answers"] for query in queries] == ([[], []] if name == "beir" else [["1070", "in 1070"]] * 2)


def test_clara(tmp_path, capsys):
    records = [record for stage in published.clara().values() for record in stage]
    (tmp_path / "data").mkdir()
    path = write_lines(tmp_path / "data" / "train.jsonl.gz", records)
    for stage, kept in [("scp", 2), ("instruct", 2), ("retrieval", 1)]:
        assert len(command("clara", str(tmp_path / "data"), tmp_path / "out.jsonl", "--stage", stage)) == kept
        assert len(read_records(tmp_path / "out.jsonl", stage)) == kept
    assert "skipped: 2 of another stage (scp); 1 no positive document" in capsys.readouterr().out
    with pytest.raises(ClaraError, match="--stage: clara has records of all stages; name one"):
        command("clara", path, tmp_path / "out.jsonl")
    with pytest.raises(ClaraError, match="--mode: has no effect with clara"):
        command("clara", path, tmp_path / "out.jsonl", "--stage", "scp", "--mode", "normal")


def test_limit(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [published.musique()[0], "broken"])
    assert len(command("musique", path, tmp_path / "out.jsonl", "--limit", 1)) == 1


def test_aliases(tmp_path):
    path = made("2wiki", tmp_path)
    aliases = write_lines(tmp_path / "id_aliases.json", published.ALIASES)
    first, second = command("2wiki", path, tmp_path / "out.jsonl", "--aliases", aliases)
    assert first["answer"] == "Oslo" and first["golden_answers"][1:] == ["Christiania", "Kristiania", "Osloer"]
    with pytest.raises(ClaraError, match="--aliases: musique has no file of aliases"):
        command("musique", made("musique", tmp_path), tmp_path / "out.jsonl", "--aliases", aliases)


def test_stop_leaves_nothing(tmp_path):
    good, _, other = published.musique()
    path = write_lines(tmp_path / "in.jsonl", [good, other | {"answer": 7}])
    out = tmp_path / "out" / "train.jsonl"
    with pytest.raises(ClaraError, match=rf'^{path}:2 \(id 2hop__11_13\): "answer" is a number'):
        command("musique", path, out)
    assert list(out.parent.iterdir()) == []
    out.write_text("as before")
    with pytest.raises(ClaraError):
        command("musique", path, out)
    assert [p.name for p in out.parent.iterdir()] == ["train.jsonl"] and out.read_text() == "as before"


def test_skip_keeps_what_it_refused(tmp_path, capsys):
    good, _, other = published.musique()
    bad = other | {"answer": "\ud83d"}
    path = write_lines(tmp_path / "in.jsonl", [good, bad, "{broken", '{"id": "\xff"}'])
    out = tmp_path / "out.jsonl.gz"
    (line,) = command("musique", path, out, "--on-error", "skip")
    assert line["qid"] == good["id"]
    rejected = [value for _, value in read_json_lines(f"{out}.rejected.jsonl")]
    assert [value["where"] for value in rejected] == [f"{path}:{i}" for i in (2, 3, 4)]
    assert all(value["reason"].startswith(value["where"]) for value in rejected)
    assert json.loads(rejected[0]["line"]) == bad and rejected[1]["line"] == "{broken"
    assert f"rejected: 3, with reasons in {out}.rejected.jsonl" in capsys.readouterr().out
    # Values of arrays are kept as JSON; a later run without refusals takes the file away.
    data = published.hotpotqa()
    data[1]["question"] = "\ud83d"
    array = write_json(tmp_path / "in.json", data)
    command("hotpotqa", array, out, "--on-error", "skip")
    (value,) = [value for _, value in read_json_lines(f"{out}.rejected.jsonl")]
    assert json.loads(value["line"]) == json.loads(json.dumps(data[1]))
    command("hotpotqa", made("hotpotqa", tmp_path), out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == ["out.jsonl.gz"]
    with pytest.raises(ClaraError, match=rf"nothing is left to write \(rejected 1, the first: {path}:1: column"):
        command("musique", write_lines(tmp_path / "in.jsonl", ["broken"]), tmp_path / "no.jsonl", "--on-error", "skip")
    assert not list(tmp_path.glob("*no.jsonl*"))


def test_a_corpus_is_checked_as_well(tmp_path):
    path = made("nq-open", tmp_path)
    bad = write_lines(tmp_path / "c.jsonl", [{"text": "moon"}, {"title": "x"}, {"contents": "landing", "_id": 3}])
    normal = ["--mode", "normal", "--corpus", bad]
    with pytest.raises(ClaraError, match=rf'^{bad}:2: "text" is missing'):
        command("nq-open", path, tmp_path / "out.jsonl", *normal)
    first, _ = command("nq-open", path, tmp_path / "out.jsonl", *normal, "--on-error", "skip")
    assert first["docs"] == ["moon", "landing"]
    with pytest.raises(ClaraError, match="--corpus: nq-open brings no documents"):
        command("nq-open", path, tmp_path / "out.jsonl", "--mode", "normal")
    with pytest.raises(ClaraError, match="2 no gold document is known.*; name --mode normal"):
        command("nq-open", path, tmp_path / "out.jsonl", "--corpus", bad, "--on-error", "skip")


def test_equal_content_equal_bytes(tmp_path):
    path = made("squad", tmp_path)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        command("squad", path, tmp_path / name)
    a, b = (tmp_path / "a.jsonl.gz").read_bytes(), (tmp_path / "b.jsonl.gz").read_bytes()
    assert a == b and a[4:8] == bytes(4) and len(gzip.decompress(a).splitlines()) == 3  # no time in the header


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("squad", ["--stage", "scp"], "--stage: 'scp' cannot be made of squad"),
        ("beir", ["--stage", "instruct"], "--stage: beir has no answers to learn"),
        ("squad", ["--candidates", "0"], "--candidates: 0 must be at least 1"),
        ("squad", ["--limit", "0"], "--limit: 0 must be at least 1"),
        ("squad", ["--retriever", "bm26"], "--retriever: 'bm26' is unknown"),
        ("squad", ["--stage", "corpus", "--candidates", "3"], "--candidates: has no effect with --stage corpus"),
        ("squad", ["--stage", "queries", "--drop-answer-bearing"], "--drop-answer-bearing: has no effect"),
        ("squad", ["--corpus", "nowhere.jsonl"], "--corpus: nowhere.jsonl does not exist"),
        ("squad", ["--output", "out.json"], "--output: out.json must be a local file whose name ends in .jsonl"),
        ("squad", ["--input", "nowhere.json"], "--input: nowhere.json does not exist"),
    ],
)
def test_options_that_do_not_fit(name, options, message, tmp_path):
    with pytest.raises(ClaraError) as caught:
        command(name, made(name, tmp_path), tmp_path / "out.jsonl", *options)
    assert str(caught.value).startswith(message)


def test_output_is_taken_away_on_ctrl_c(tmp_path, monkeypatch):
    def interrupted(*arguments):
        yield {"qid": "1"}
        raise KeyboardInterrupt

    monkeypatch.setattr("clara_jax.data.importers.command._queries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("squad", made("squad", tmp_path), tmp_path / "out.jsonl", "--stage", "queries")
    assert [p.name for p in tmp_path.iterdir()] == ["in.json"]
