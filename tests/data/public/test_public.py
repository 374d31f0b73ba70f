"""The folder of real data: what it holds, downloads that break off or are not as published, work without a network."""

import argparse
import dataclasses
import hashlib
import json
import re

import pytest

from clara_jax.configs import smollm2
from clara_jax.data.public import command, downloads, passages, sources
from clara_jax.errors import ClaraError
from clara_jax.evaluation.suites import open_suites
from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.records import read_records
from tests.data.importers import published as importers_published
from tests.data.public import published
from tests.data.public.server import serving

LEAD = "Ulm is a town at the Danube, which has had a university and the tallest church tower of all since 1890."
PARAGRAPH = "Governments collect taxes so that roads, schools and courts can be paid for by all who live in a country."


def contents():
    repeated = json.loads(published.squad(8, 50))["data"][0]["paragraphs"][0]["context"]
    pages = {
        "Ulm": LEAD.replace(",", " ,").replace(".", " ."),
        "Short": "Too short .",
        "Harbour_50": f"{repeated} {LEAD}",
    }
    books = {f"{book.name}.collection.xml": published.contents_of_book(["m1"]) for book in sources.BOOKS}
    return {
        "train-v1.1.json": published.squad(6, 0),
        "dev-v1.1.json": published.squad(8, 50),
        "nq-open-oracle.jsonl.gz": published.natural_questions(230),
        "boolq-dev.jsonl": published.boolq(4),
        "FairytaleQAData.zip": published.fairytales(),
        "tune.tsv": published.wiki_split(2),
        "validation.tsv": published.wiki_split(2, 2),
        "test.tsv": published.wiki_split(1, 4),
        "OTT-QA.zip": published.ott_qa(pages),
        **books,
    }


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of all files, whose addresses and checksums stand in the place of the true ones."""
    with serving(contents()) as server:
        for number, book in enumerate(sources.BOOKS):
            text = f"{PARAGRAPH} Book {number} says so."
            server.contents[f"{book.repository}/modules/m1/index.cnxml"] = published.module("Taxes", [text, "Short."])
        monkeypatch.setattr(
            sources.Book, "root", property(lambda book: f"{server.url}/{book.repository}"), raising=True
        )
        parts = {}
        for name, part in sources.PARTS.items():
            if name in ("hotpotqa", "2wiki", "musique"):
                local = tuple(dataclasses.replace(one, url="") for one in part.downloads)
            else:
                local = tuple(_local(one, server, tmp_path) for one in part.downloads)
            parts[name] = dataclasses.replace(part, downloads=local)
        monkeypatch.setattr(command, "PARTS", parts)
        yield server


def _local(download, server, folder):
    content = server.contents[download.file]
    digest = hashlib.sha256(content).hexdigest()
    if download.members:
        (folder / "archive.zip").write_bytes(content)
        digest = downloads.listing(folder / "archive.zip", download.members)
    return dataclasses.replace(
        download, url=f"{server.url}/{download.file}", sha256=digest if download.sha256 else None
    )


def make(output, *words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(["--output", str(output), "--tokenizer", "words", *map(str, words)]))


def rows(path):
    return [fields for _, fields in read_json_lines(str(path))]


def test_it_holds_what_the_configuration_and_the_evaluation_read(server, tmp_path, capsys):
    output = tmp_path / "made"
    make(output)
    said = capsys.readouterr().out
    assert re.search(r"^2wiki: left out; fetch 2wiki-dev.json by hand from https://", said, re.MULTILINE)
    files = [*smollm2.QUESTIONS, *smollm2.MORE_QUESTIONS, *smollm2.POOL, smollm2.HELD_OUT]
    files += [file for part in (smollm2.TRAIN, smollm2.EVAL) for stage in part.values() for file in stage]
    missing = [file for file in files if not (output / file.rpartition(":")[2]).is_file()]
    assert not missing
    for stage, (file, *_) in smollm2.TRAIN.items():
        assert read_records([str(output / file)], stage)
    suites = {suite.name: suite for suite in open_suites(["compressor", "end_to_end"], str(output), None, None, 0)}
    assert len(suites) == 8 and len(suites["end_to_end/nq/oracle"].cases) == 200
    for case in suites["compressor/squad/oracle"].cases:
        assert len(case.documents) <= 5 and case.references[0] in case.documents[case.positives[0]]

    # Articles are in one part each, and nothing that is asked in the held-out ones is learned.
    asked = {
        part: {row["question"] for row in rows(output / f"squad/stage1_2_instruction.{part}.jsonl")}
        for part in ("train", "dev")
    }
    evaluated = {case.question for case in suites["compressor/squad/oracle"].cases}
    assert asked["train"] and asked["dev"] and evaluated
    assert not asked["dev"] & evaluated and not asked["train"] & (asked["dev"] | evaluated)
    documents = [row["docs"][0] for row in rows(output / "squad/stage1_pretrain_qa.train.jsonl")]
    assert len(documents) == len(set(documents)) == 12
    learned = {row["question"][0] for row in rows(output / "extra/nq/stage1_pretrain_qa.train.jsonl")}
    assert len(learned) == 30 and not learned & {case.question for case in suites["end_to_end/nq/oracle"].cases}

    assert rows(output / "extra/boolq/stage1_pretrain_qa.jsonl")[1] == {
        "data_type": "qa",
        "question": ["Is hill 1 high?"],
        "answers": ["no"],
        "docs": ["Hill 1 is a hill of height 1."],
    }
    assert rows(output / "extra/fairytaleqa/stage1_pretrain_qa.train.jsonl") == [
        {
            "data_type": "qa",
            "question": ["Where did the fox run?"],
            "answers": ["into the wood"],
            "docs": ["The fox of train ran into the wood."],
        }
    ]
    assert rows(output / "extra/paraphrase_wikisplit/stage1_pretrain_paraphrase.dev.jsonl") == [
        {
            "data_type": "paraphrase",
            "question": "",
            "answers": ['Town 4 is "old". It lies at a river.'],
            "docs": ['Town 4, which is "old", lies at a river.'],
        }
    ]
    assert rows(output / "pool/wiki_leads.jsonl.gz") == [{"id": "Ulm", "title": "Ulm", "text": LEAD}]
    taxes = rows(output / "pool/openstax.jsonl.gz")
    assert len(taxes) == len(sources.BOOKS)
    assert taxes[0]["title"] == "Taxes" and taxes[0]["text"] == f"{PARAGRAPH} Book 0 says so."
    assert taxes[0]["id"] == f"{sources.BOOKS[0].name}/m1/0"

    # Once more: nothing is fetched, nothing is written.
    before, count = {path: path.stat().st_mtime_ns for path in output.rglob("*.json*")}, len(server.asked)
    make(output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.json*")} == before and len(server.asked) == count
    assert "squad: there already: " in capsys.readouterr().out
    # Other options make it anew, from what has been fetched.
    make(output, "--only", "boolq", "--max-tokens", 3)
    assert rows(output / "extra/boolq/stage1_pretrain_qa.jsonl") == [] and len(server.asked) == count


def test_what_broke_off_goes_on_where_it_stopped(server, tmp_path):
    whole = server.contents["boolq-dev.jsonl"]
    server.cut["boolq-dev.jsonl"] = 100
    with pytest.raises(ClaraError, match=rf"broke off after 100 of {len(whole)} bytes; the same command goes on"):
        make(tmp_path / "made", "--only", "boolq")
    assert not (tmp_path / "made/extra").exists() and not (tmp_path / "made/downloads/boolq-dev.jsonl").exists()
    make(tmp_path / "made", "--only", "boolq")
    assert server.asked == [("boolq-dev.jsonl", None), ("boolq-dev.jsonl", "bytes=100-")]
    assert (tmp_path / "made/downloads/boolq-dev.jsonl").read_bytes() == whole
    assert not list((tmp_path / "made/downloads").glob(".*"))


@pytest.mark.parametrize("change", ["ranges", "content"])
def test_parts_of_two_files_are_not_joined(server, tmp_path, change):
    """Where the server cannot go on, or the file has changed, all of it is fetched."""
    server.cut["boolq-dev.jsonl"] = 100
    with pytest.raises(ClaraError, match="broke off"):
        make(tmp_path / "made", "--only", "boolq")
    published_ = server.contents["boolq-dev.jsonl"]
    if change == "ranges":
        server.ranges = False
        make(tmp_path / "made", "--only", "boolq")
        assert (tmp_path / "made/downloads/boolq-dev.jsonl").read_bytes() == published_
    else:
        server.contents["boolq-dev.jsonl"] = published_.upper()
        with pytest.raises(
            ClaraError, match=r"boolq-dev.jsonl: is not the file as published: its SHA-256 is \w{16}\.\.\."
        ):
            make(tmp_path / "made", "--only", "boolq")
        assert [path.name for path in (tmp_path / "made").rglob("*") if path.is_file()] == [command.LOCK]


def test_what_cannot_be_fetched_is_one_line(server, tmp_path):
    del server.contents["tune.tsv"]
    with pytest.raises(
        ClaraError, match=r"^http://\S+/tune.tsv: cannot be fetched: HTTP Error 404: Not Found; the same"
    ):
        make(tmp_path / "made", "--only", "wikisplit")
    server.shutdown()
    server.server_close()
    with pytest.raises(ClaraError, match=r"/boolq-dev.jsonl: cannot be fetched: .*refused.*; the same command goes on"):
        make(tmp_path / "made", "--only", "boolq")


def test_files_that_the_user_has_need_no_network(server, tmp_path):
    have = tmp_path / "have"
    have.mkdir()
    for name in ("boolq-dev.jsonl", "tune.tsv", "validation.tsv"):
        (have / name).write_bytes(server.contents[name])
    (tmp_path / "test.tsv").write_bytes(server.contents["test.tsv"])
    answerable = [record for record in importers_published.musique() if record.get("answerable", True)]
    importers_published.write_lines(tmp_path / "musique_ans_v1.0_dev.jsonl", answerable)
    files = ("--files", have, tmp_path / "test.tsv", tmp_path / "musique_ans_v1.0_dev.jsonl", "--offline")
    make(tmp_path / "made", "--only", "boolq", "wikisplit", "musique", *files)
    assert not server.asked and rows(tmp_path / "made/eval/stage1_eval/musique/eval_processed_with_pos.jsonl")
    with pytest.raises(
        ClaraError, match=r"^train-v1.1.json: is not among --files, and --offline is given; it is at http"
    ):
        make(tmp_path / "made", "--only", "squad", *files)
    with pytest.raises(
        ClaraError, match=r"^2wiki-dev.json: fetch it by hand from https://\S+ .*, and name it with --files"
    ):
        make(tmp_path / "made", "--only", "2wiki", *files)
    (have / "boolq-dev.jsonl").write_bytes(b"{}")
    with pytest.raises(ClaraError, match="boolq-dev.jsonl: is not the file as published"):
        make(tmp_path / "other", "--only", "boolq", *files)
    assert (have / "boolq-dev.jsonl").read_bytes() == b"{}"  # the user's, which stays as it is


def test_what_has_no_known_checksum_is_recorded_and_then_held_to_it(server, tmp_path):
    make(tmp_path / "made", "--only", "openstax")
    folder = tmp_path / "made/downloads"
    name = f"{sources.BOOKS[0].name}/m1.cnxml"
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert f"{digest}  {name}\n" in (folder / downloads.RECORDED).read_text()
    (folder / name).write_bytes(published.module("Taxes", ["Another text."]))
    with pytest.raises(
        ClaraError, match=r"m1.cnxml: is not the file as when it was first used .*; remove it, and it is"
    ):
        make(tmp_path / "made", "--only", "openstax", "--seed", 1)


def test_a_book_under_another_licence_is_not_taken(server, tmp_path):
    name = f"{sources.BOOKS[1].name}.collection.xml"
    server.contents[name] = published.contents_of_book(["m1"], "http://creativecommons.org/licenses/by-nc-sa/4.0/")
    with pytest.raises(ClaraError, match=rf"{re.escape(name)}: its licence is not CC BY; the book is not taken"):
        make(tmp_path / "made", "--only", "openstax")
    assert not (tmp_path / "made/pool/openstax.jsonl.gz").exists()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ClaraError, match="--only: 'squat' must be one of squad, nq, .*; did you mean squad?"):
        make(tmp_path, "--only", "squat")
    with pytest.raises(ClaraError, match="--files: nowhere: there is no such file or folder"):
        make(tmp_path, "--files", "nowhere")


@pytest.mark.parametrize(
    "tokens, text",
    [
        ("Ulm ( Germany ) is old , is n't it ?", "Ulm (Germany) is old, isn't it?"),
        ("Ann 's `` red '' hat costs 5 % more .", 'Ann\'s "red" hat costs 5% more.'),
        ("It &amp; that : a three - tier one", "It & that: a three - tier one"),
    ],
)
def test_tokens_are_written_as_text(tokens, text):
    assert passages.written_out(tokens) == text


def test_addresses_are_of_one_version():
    """Files of repositories name a commit, and all but a few have a checksum."""
    every = [one for part in sources.PARTS.values() for one in part.downloads]
    for one in every:
        assert not one.url or re.match(r"https?://", one.url)
        if "github" in one.url and "github.io" not in one.url:
            assert re.search(r"/[0-9a-f]{40}[/.]", one.url), one.file
        assert one.url or one.page
    unknown = {one.file for one in every if one.sha256 is None and not one.file.endswith(".collection.xml")}
    assert unknown == {"hotpot_dev_distractor_v1.json", "2wiki-dev.json", "musique_ans_v1.0_dev.jsonl"}
    assert len({one.file for one in every}) == len(every)
