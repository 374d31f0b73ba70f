"""The whole way: the files that are written, stable ids, errors, and the command."""

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from clara_jax import command as commands
from clara_jax.data.corpus import build, command
from clara_jax.data.corpus.build import build_corpus
from clara_jax.data.corpus.readers import read_documents
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words
from tests.data import tiny_tokenizer
from tests.data.corpus import pdf, write
from tests.locations import ROOT


def prose(name, sentences=30):
    return " ".join(f"Sentence {i} of {name} says {name}{i * 7 % 11} and {name}{i * 5 % 13}." for i in range(sentences))


FILES = {
    "ferry.txt": prose("ferry"),
    "notes/harbour.md": f"# The harbour\n\n{prose('harbour')}\n\n{prose('pier')}\n",
    "notes/island.html": f"<html><head><title>Island</title></head><body><p>{prose('island')}</p></body></html>",
    "guide.pdf": pdf([[f"Line {i} of page {page}." for i in range(20)] for page in range(3)], "Guide"),
    "more.jsonl": "".join(json.dumps({"id": f"m{i}", "text": prose(f"more{i}", 9)}) + "\n" for i in range(70)),
}
CHUNKER = Chunker(count_words, 40)


def make(inputs, output, chunker=CHUNKER, **options):
    options = {"workers": 1, "progress": False} | options
    report = build_corpus([inputs] if isinstance(inputs, str) else inputs, str(output), chunker, **options)
    return report, [line for _, line in read_json_lines(str(output))]


def listing(folder):
    return sorted(os.listdir(folder))


def test_a_corpus_of_everything(tmp_path):
    folder = write(tmp_path / "in", FILES | {"picture.png": b"x"})
    report, lines = make(folder, tmp_path / "corpus.jsonl")
    assert report.files == {"text": 1, "markdown": 1, "html": 1, "pdf": 1, "jsonl": 1}
    assert report.ignored == {".png": 1}
    assert (report.documents, report.chunks, report.rejected) == (74, len(lines), 0)
    assert report.tokens[2] == max(count_words([line["text"] for line in lines])) <= 40
    assert report.tokens[0] == min(count_words([line["text"] for line in lines]))
    documents = {document.id: document for document in read_documents([folder])}
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines:
        document = documents[line["document"]]
        assert line["text"].endswith(document.text[line["start"] : line["end"]])
        assert line["title"] == document.title and line["source"] == document.source
        assert ("page" in line) == (document.id == "guide.pdf")
    assert {line["page"] for line in lines if "page" in line} == {1, 2, 3}
    assert listing(tmp_path) == ["corpus.jsonl", "in"]


def test_the_same_bytes_however_many_workers(tmp_path):
    folder = write(tmp_path / "in", FILES)
    for name in ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst"):
        make(folder, tmp_path / name)
        alone = (tmp_path / name).read_bytes()
        make(folder, tmp_path / name, workers=2 if name == "corpus.jsonl" else 1)
        assert (tmp_path / name).read_bytes() == alone


def test_an_output_within_the_input_is_not_read_again(tmp_path):
    folder = write(tmp_path / "in", FILES)
    output = tmp_path / "in" / "corpus.jsonl"
    first, _ = make(folder, output)
    second, _ = make(folder, output)
    assert (first.documents, first.chunks) == (second.documents, second.chunks)


def test_ids_stay_when_other_files_come_and_change(tmp_path):
    folder = write(tmp_path / "in", FILES)
    _, before = make(folder, tmp_path / "before.jsonl")
    write(tmp_path / "in", {"added.txt": prose("added"), "ferry.txt": prose("changed", 80)})
    _, after = make(folder, tmp_path / "after.jsonl")

    def others(lines):
        return [line for line in lines if line["document"] not in ("added.txt", "ferry.txt")]

    assert others(before) == others(after)
    assert any(line["id"] == "added.txt#0" for line in after)


def test_duplicates_are_dropped_and_reported(tmp_path):
    text = prose("ferry", 12)
    files = {"a.txt": text, "b.txt": text, "c.txt": text.replace("Sentence 5", "Clause 5"), "d.txt": prose("other", 12)}
    folder = write(tmp_path / "in", files)
    chunker = Chunker(count_words, 200)
    report, lines = make(folder, tmp_path / "out.jsonl", chunker)
    assert [line["id"] for line in lines] == ["a.txt#0", "d.txt#0"]
    assert (report.exact, report.near, report.documents) == (1, 1, 4)
    found = [line for _, line in read_json_lines(str(tmp_path / "out.jsonl.duplicates.jsonl"))]
    assert [(line["id"], line["of"]) for line in found] == [("b.txt#0", "a.txt#0"), ("c.txt#0", "a.txt#0")]
    assert found[0]["similarity"] == 1 and 0.8 <= found[1]["similarity"] < 1
    report, lines = make(folder, tmp_path / "out.jsonl", chunker, near_duplicates=0.999)
    assert (report.exact, report.near, len(lines)) == (1, 0, 3)
    report, lines = make(folder, tmp_path / "out.jsonl", chunker, near_duplicates=None)
    assert (report.exact, report.near, len(lines)) == (0, 0, 4)
    assert listing(tmp_path) == ["in", "out.jsonl"]  # what a run before has said is gone


def test_stop_leaves_nothing_and_skip_says_what_was_left_out(tmp_path):
    bad = {"b.pdf": pdf([[]]), "c.jsonl": '{"text": "Fine."}\n{"text": 3}\n', "d.txt": "", "e.jsonl": "\n"}
    folder = write(tmp_path / "in", FILES | bad | {"f.jsonl.gz": gzip.compress(b'{"text": "One more."}\n' * 9)[:-9]})
    output = tmp_path / "corpus.jsonl"
    with pytest.raises(ClaraError, match=r"b.pdf: holds no text on its 1 pages"):
        make(folder, output)
    assert listing(tmp_path) == ["in"]
    report, lines = make(folder, output, on_error="skip")
    rejected = [line for _, line in read_json_lines(f"{output}.rejected.jsonl")]
    assert [os.path.relpath(line["file"], folder) for line in rejected] == [
        "b.pdf",
        "c.jsonl:2",
        "d.txt",
        "e.jsonl",
        "f.jsonl.gz",
    ]
    assert all(line["reason"].startswith(line["file"]) for line in rejected)
    assert report.rejected == 5 and "rejected    5 (" in str(report)
    assert "c.jsonl:1#0" in {line["id"] for line in lines}
    with pytest.raises(ClaraError, match="--on-error: \"?'?ignore"):
        make(folder, output, on_error="ignore")


def test_ids_given_twice_are_refused(tmp_path):
    first, second = write(tmp_path / "a", {"x.txt": "One."}), write(tmp_path / "b", {"x.txt": "Two."})
    with pytest.raises(ClaraError, match=r"b/x.txt: its id 'x.txt' is that of .*a/x.txt, too; give other ids, or name"):
        make([first, second], tmp_path / "out.jsonl")
    report, lines = make(str(tmp_path), tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == ["a/x.txt#0", "b/x.txt#0"]
    twice = write(tmp_path / "c", {"x.jsonl": '{"id": 1, "text": "One."}\n{"id": "1", "text": "Two."}\n'})
    with pytest.raises(ClaraError, match=r"x.jsonl:2: its id '1' is that of .*x.jsonl:1, too"):
        make(twice, tmp_path / "out.jsonl")


def test_nothing_that_could_be_read(tmp_path):
    folder = write(tmp_path / "in", {"a.txt": "", "b.txt": " "})
    with pytest.raises(ClaraError, match="nothing could be read; the first of 2: .*a.txt: holds no text"):
        make(folder, tmp_path / "out.jsonl", on_error="skip")
    assert listing(tmp_path) == ["in"]


def test_a_killed_worker_is_one_line(tmp_path):
    folder = write(tmp_path / "in", {"a.txt": "One."})
    work = build._Work(_Killer(), False)
    tasks = [task for file in build.find_files([folder])[0] for task in build._tasks(file)]
    with pytest.raises(ClaraError, match="a process that read documents was killed"):
        with build._mapping(work, 2) as mapping:
            list(mapping(tasks))


class _Killer:
    """A chunker that ends its process."""

    def __call__(self, document):
        os.kill(os.getpid(), signal.SIGKILL)


# --- the command ---


def call(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*map(str, arguments)]))


def test_the_command(tmp_path, capsys):
    folder = write(tmp_path / "in", FILES)
    call("--input", folder, "--output", tmp_path / "out.jsonl.zst", "--max-tokens", 40, "--workers", 1)
    said = capsys.readouterr()
    _, lines = make(folder, tmp_path / "same.jsonl")
    assert [line for _, line in read_json_lines(str(tmp_path / "out.jsonl.zst"))] == lines
    assert f"{len(lines):,} chunks of 74 documents" in said.out and "1 html, 1 jsonl, 1 markdown, 1 pdf" in said.out
    assert "Lengths are in words" in said.out
    assert "corpus" in said.err  # the bar


def test_the_command_with_a_tokenizer_and_all_options(tmp_path):
    tokenizer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=200, memory_tokens=2)
    tokenizer.save(tmp_path / "tokenizer")
    folder = write(tmp_path / "in", {"ferry.txt": FILES["ferry.txt"]})
    options = ["--tokenizer", tmp_path / "tokenizer", "--max-tokens", 200, "--overlap", 1, "--no-title"]
    call("--input", folder, "--output", tmp_path / "out.jsonl", *options, "--near-duplicates", "off")
    lines = [line for _, line in read_json_lines(str(tmp_path / "out.jsonl"))]
    assert all(a["end"] > b["start"] for a, b in zip(lines[:-1], lines[1:], strict=True)) and len(lines) > 3
    assert not any(tokenizer.is_cut(line["text"]) or line["text"].startswith(line["title"]) for line in lines)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--near-duplicates", "some"], "--near-duplicates: 'some' must be a number from 0 to 1, or \"off\""),
        (["--near-duplicates", "2"], "--near-duplicates: 2.0 must be above 0 and at most 1, or off"),
        (["--workers", "0"], "--workers: 0 must be at least 1"),
        (["--max-tokens", "0"], "--max-tokens: 0 must be at least 1"),
        (["--tokenizer", "no/such/base"], "no/such/base: no such directory"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
    folder = write(tmp_path / "in", {"a.txt": "One."})
    with pytest.raises(SystemExit) as caught:
        commands.run(lambda: call("--input", folder, "--output", tmp_path / "out.jsonl", *options))
    said = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and said.startswith(f"error: {message}") and "\n" not in said
    assert listing(tmp_path) == ["in"]


# What a shell starts in the background, and all that it starts, ignores SIGINT: this program listens wherever it runs.
PROGRAM = """
import argparse
import signal
from clara_jax import command as commands
from clara_jax.data.corpus import command

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args())

if __name__ == "__main__":
    commands.run(main)
"""


def test_interrupted_it_leaves_nothing(tmp_path):
    lines = "".join(json.dumps({"id": f"m{i}", "text": prose(f"w{i}", 60)}) + "\n" for i in range(3000))
    folder = write(tmp_path / "in", {"more.jsonl": lines})
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["--input", folder, "--output", str(tmp_path / "out.jsonl"), "--max-tokens", "40", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    partial = tmp_path / ".out.jsonl.partial"
    limit = time.monotonic() + 240  # of a machine that is full: two workers are to start
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130 and said.strip().endswith("interrupted") and "Traceback" not in said
    assert listing(tmp_path) == ["in", "program.py"]
