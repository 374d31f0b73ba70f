"""What is built is what was in the files, for this package and for TFDS alone, and it is there as a whole or not."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from clara_jax.data.builders import RECORD, RecordSource, build, fingerprint, parse_passage
from clara_jax.data.builders.datasets import DATASETS
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.records import parse_record, read_records
from tests.data.builders.files import LINES, QUESTION, questions, write
from tests.locations import ROOT


def read(path, stage):
    if stage == "corpus":
        return [parse_passage(fields, where) for where, fields in read_json_lines(path)]
    return read_records(path, stage)


def built(folder, stage, train, **options):
    """The report of a build of one file, and its source."""
    report = build(stage, {"train": [train]}, folder, **options)
    return report, RecordSource(report.directory, "train")


@pytest.mark.parametrize("stage", LINES)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_items_are_those_of_the_files(stage, suffix, tmp_path):
    train = write(tmp_path / f"train.jsonl{suffix}", [b"", *LINES[stage], b"  "])
    other = write(tmp_path / "more.jsonl", LINES[stage])
    report = build(stage, {"train": [train, other], "eval": [other]}, tmp_path / "data", shard_bytes=1)
    assert report.directory == tmp_path / "data" / DATASETS[stage].name / "1.0.0"
    expected = read(train, stage) + read(other, stage)
    source = RecordSource(report.directory, "train")
    assert [*source] == [source[i] for i in range(len(source))] == expected
    assert [*RecordSource(tmp_path / "data", "eval")] == read(other, stage)
    assert report.splits["train"].records == report.splits["train"].shards == len(expected)  # one item fills a shard
    assert report.splits["train"].fingerprint == source.fingerprint
    sizes = [path.stat().st_size for path in report.directory.glob("*-train.array_record-*")]
    assert report.splits["train"].bytes == sum(sizes) > 0
    source.verify()


@pytest.fixture(scope="module")
def read_alone(tmp_path_factory):
    """Of every stage the report of a build and its source, and what a program without clara_jax finds there."""
    data_sets = {}
    for stage in LINES:
        folder = tmp_path_factory.mktemp(stage)
        data_sets[stage] = built(folder / "data", stage, write(folder / "x.jsonl", LINES[stage]), shard_bytes=1)
    program = """if True:
        import json, sys
        import tensorflow_datasets as tfds
        assert "clara_jax" not in sys.modules
        def plain(value):
            if isinstance(value, bytes):
                return value.decode("utf-8", "surrogatepass")
            return [*map(plain, value)] if hasattr(value, "__iter__") else int(value)
        for directory in sys.argv[1:]:
            builder = tfds.builder_from_directory(directory)
            items = builder.as_data_source("train")
            rows = [{name: plain(value) for name, value in item.items()} for item in items]
            print(json.dumps([rows, builder.info.metadata["fingerprint"], builder.info.splits["train"].num_examples]))
        assert "clara_jax" not in sys.modules and "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-I", "-c", program, *(str(report.directory) for report, _ in data_sets.values())]
    lines = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
    return {stage: (*data_sets[stage], json.loads(line)) for stage, line in zip(LINES, lines, strict=True)}


@pytest.mark.parametrize("stage", LINES)
def test_tfds_reads_it_alone(stage, read_alone):
    """What TFDS finds in the directory, compared with the items."""
    report, source, (rows, found, count) = read_alone[stage]
    assert found == report.fingerprint and count == len(source)
    for row, item in zip(rows, source, strict=True):
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(item).items()}
        assert row == values


def test_stored_bytes_are_those_tfds_would_write():
    import tensorflow_datasets as tfds

    record = parse_record(QUESTION | {"pos_index": []}, "instruct", "f:1")
    features = RECORD.features()
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    stored = serializer.get_tf_example(features.encode_example(vars(record)))
    assert stored.SerializeToString(deterministic=True) == RECORD.encode(record)
    assert RECORD.decode(RECORD.encode(record)) == record


def test_registered_with_tfds(tmp_path):
    import tensorflow_datasets as tfds

    path = write(tmp_path / "x.jsonl", LINES["scp"])
    dataset = tfds.builder("clara_scp", data_dir=tmp_path / "registered", files={"train": [path]}, progress=False)
    dataset.download_and_prepare()
    source = RecordSource(dataset.data_dir, "train")
    assert [*source] == read_records(path, "scp")
    again = tfds.builder("clara_scp", data_dir=tmp_path / "registered")
    assert again.info.metadata["splits"]["train"]["fingerprint"] == source.fingerprint
    assert len(again.as_data_source("train[:50%]")) == 1
    with pytest.raises(ClaraError, match="clara_instruct: there is no data set in .* no files to make one"):
        tfds.builder("clara_instruct", data_dir=tmp_path / "registered").download_and_prepare()


def test_from_a_remote_place(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl.gz", questions(3))
    with fsspec.open(f"memory://{tmp_path.name}/x.jsonl.gz", "wb") as file, open(path, "rb") as source:
        file.write(source.read())
    files = {"train": [f"memory://{tmp_path.name}/*.gz"]}
    report = build("instruct", files, tmp_path / "data", progress=True)
    local = build("instruct", {"train": [path]}, tmp_path / "local")
    assert report.fingerprint == local.fingerprint
    assert "3 records" in capsys.readouterr().err  # a bar without an end: remote files are not read twice


# --- fingerprint ---


def prints(folder, *files):
    return build("end_to_end", {"train": list(files)}, folder, overwrite=True).fingerprint


def test_the_fingerprint_is_of_what_records_say(tmp_path):
    lines = questions(6)
    whole = write(tmp_path / "whole.jsonl", lines)
    expected = prints(tmp_path / "a", whole)
    assert prints(tmp_path / "b", write(tmp_path / "other.jsonl.gz", [b"", *lines])) == expected
    assert prints(tmp_path / "c", write(tmp_path / "other.jsonl.zst", lines)) == expected
    parts = [write(tmp_path / "p0.jsonl", lines[:2]), write(tmp_path / "p1.jsonl.gz", lines[2:])]
    assert prints(tmp_path / "d", *parts) == expected
    spelled = [line | {"context": line["docs"], "docs": None} for line in lines]
    assert prints(tmp_path / "e", write(tmp_path / "spelled.jsonl", spelled)) == expected
    source = RecordSource(tmp_path / "a", "train")
    assert fingerprint(read_records(whole, "end_to_end"), RECORD) == source.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0] | {"docs": ["0.0 Word", *lines[0]["docs"][1:]]}, *lines[1:]],
        lambda lines: [lines[0] | {"question": "Who is 0!"}, *lines[1:]],
        lambda lines: [lines[0] | {"qid": "named"}, *lines[1:]],
        lambda lines: [lines[0] | {"pos_index": [0]}, *lines[1:]],
        lambda lines: [lines[0] | {"gold_answer": "Bob"}, *lines[1:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: lines[:-1],
    ],
    ids=["document", "question", "qid", "positive", "reference", "order", "one-less"],
)
def test_one_change_changes_it(change, tmp_path):
    lines = questions(3)
    before = prints(tmp_path / "a", write(tmp_path / "x.jsonl", lines))
    assert prints(tmp_path / "b", write(tmp_path / "y.jsonl", change(lines))) != before


def test_texts_cannot_be_shifted_between_fields():
    one, other = (QUESTION | {"docs": docs, "pos_index": []} for docs in (["ab", "c"], ["a", "bc"]))
    contents = {RECORD.content(parse_record(fields, "instruct", "f:1")) for fields in (one, other)}
    assert len(contents) == 2


# --- bad lines ---

BAD = [
    QUESTION,
    b"{nope",
    QUESTION | {"docs": []},
    b'{"question": "\xff"}',
    QUESTION | {"question": "Kept?"},
    [1],
]


def test_the_first_bad_line_stops(tmp_path):
    path = write(tmp_path / "x.jsonl", BAD)
    with pytest.raises(ClaraError) as caught:
        build("instruct", {"train": [path]}, tmp_path / "data")
    assert str(caught.value).startswith(f"{path}:2: column 2: not JSON")
    assert not [*(tmp_path / "data").rglob("*.*_record*")] and not [*(tmp_path / "data").rglob("*.json*")]
    with pytest.raises(ClaraError, match="holds no data set"):
        RecordSource(tmp_path / "data", "train")


def test_skipped_lines_are_kept_with_their_reasons(tmp_path):
    path, good = write(tmp_path / "x.jsonl.gz", BAD), write(tmp_path / "good.jsonl", [QUESTION])
    report = build("instruct", {"train": [path], "eval": [good]}, tmp_path / "data", on_error="skip")
    assert report.splits["train"].rejected == 4 and report.splits["eval"].rejected == 0
    source = RecordSource(tmp_path / "data", "train")
    assert [record.where for record in source] == [f"{path}:1", f"{path}:5"] and source.rejected == 4
    rows = [json.loads(line) for line in report.rejects.read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{path}:{number}" for number in (2, 3, 4, 6)]
    assert rows[0]["line"] == "{nope" and rows[0]["reason"].startswith("column 2: not JSON")
    assert rows[1]["reason"].startswith('"docs" is empty') and json.loads(rows[1]["line"])["docs"] == []
    assert rows[2]["line"] == '{"question": "\\xff"}' and "UTF-8" in rows[2]["reason"]
    assert rows[3]["reason"].startswith("the line holds a list")
    clean = build("instruct", {"train": [good]}, tmp_path / "clean", on_error="skip")
    assert clean.rejects.read_text() == "" and "rejected lines" in str(report)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    ("stage", "lines", "message"),
    [
        ("instruct", [b"", b" "], "x.jsonl: the file holds no records"),
        ("retrieval", [QUESTION | {"pos_index": []}], 'x.jsonl: no record has a "pos_index"'),
        ("corpus", None, "x.jsonl: no such file|x.jsonl does not exist"),
    ],
)
def test_files_that_cannot_be_built(stage, lines, message, on_error, tmp_path):
    path = str(tmp_path / "x.jsonl") if lines is None else write(tmp_path / "x.jsonl", lines)
    with pytest.raises(ClaraError, match=message):
        build(stage, {"train": [path]}, tmp_path / "data", on_error=on_error)
    assert not [*(tmp_path / "data").rglob("*.json")]


def test_a_file_of_bad_lines_alone_is_not_skipped(tmp_path):
    path = write(tmp_path / "x.jsonl", [QUESTION | {"docs": []}, b"{"])
    with pytest.raises(ClaraError, match=r'x.jsonl: the file holds no records.* none: .*x.jsonl:1: "docs" is empty'):
        build("instruct", {"train": [path]}, tmp_path / "data", on_error="skip")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "the line holds a list"),
        ({"id": "a"}, '"text" is missing'),
        ({"text": " "}, '"text" is empty'),
        ({"contents": 3}, '"contents" is a number; it must be a string'),
        ({"text": "x", "id": [1]}, '"id" is a list; it must be a string or a whole number'),
        ({"text": "x", "id": True}, '"id" is true or false'),
        ({"text": "x", "start": -1}, '"start" is -1; it must be a whole number from 0'),
        ({"text": "x", "page": "3"}, "\"page\" is '3'"),
        ({"text": "\ud83d"}, '"text" holds half of a surrogate pair'),
    ],
)
def test_bad_passages(fields, message, tmp_path):
    path = write(tmp_path / "corpus.jsonl", [{"text": "good"}, fields])
    with pytest.raises(ClaraError) as caught:
        build("corpus", {"train": [path]}, tmp_path / "data")
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_arguments(tmp_path):
    path = write(tmp_path / "x.jsonl", [QUESTION])
    with pytest.raises(ClaraError, match="stage 'sft' is unknown"):
        build("sft", {"train": [path]}, tmp_path / "data")
    with pytest.raises(ClaraError, match="no data file is named"):
        build("instruct", {"train": [], "eval": []}, tmp_path / "data")
    with pytest.raises(ClaraError, match="on_error is 'ignore'"):
        build("instruct", {"train": [path]}, tmp_path / "data", on_error="ignore")
    (tmp_path / "file").touch()
    with pytest.raises(ClaraError, match="file"):
        build("instruct", {"train": [path]}, tmp_path / "file")


# --- whole or not at all ---


def test_what_is_there_is_replaced_only_when_told(tmp_path):
    first, second = (write(tmp_path / f"{name}.jsonl", questions(count)) for name, count in (("a", 2), ("b", 3)))
    build("instruct", {"train": [first], "eval": [first]}, tmp_path / "data")
    with pytest.raises(ClaraError, match="clara_instruct/1.0.0: is there already; .* --overwrite"):
        build("instruct", {"train": [second]}, tmp_path / "data")
    assert len(RecordSource(tmp_path / "data", "train")) == 2
    bad = write(tmp_path / "bad.jsonl", [*questions(1), b"{"])
    with pytest.raises(ClaraError, match="bad.jsonl:2"):
        build("instruct", {"train": [bad]}, tmp_path / "data", overwrite=True)
    assert len(RecordSource(tmp_path / "data", "eval")) == 2
    build("instruct", {"train": [second]}, tmp_path / "data", overwrite=True)
    assert len(RecordSource(tmp_path / "data", "train")) == 3
    with pytest.raises(ClaraError, match="has no split 'eval'; it has train"):
        RecordSource(tmp_path / "data", "eval")
    names = {path.name for path in (tmp_path / "data" / "clara_instruct").iterdir()}
    assert names == {"1.0.0", ".lock"}


def test_one_process_builds_at_a_time(tmp_path):
    path = write(tmp_path / "x.jsonl", [QUESTION])
    (tmp_path / "data" / "clara_instruct").mkdir(parents=True)
    with open(tmp_path / "data" / "clara_instruct" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ClaraError, match="another process is building it"):
            build("instruct", {"train": [path]}, tmp_path / "data")
    build("instruct", {"train": [path]}, tmp_path / "data")


def start(path, folder, *options):
    code = "import sys; from clara_jax.data.builders import build; build('instruct', {'train': [sys.argv[1]]}, "
    command = [sys.executable, "-c", f"{code}sys.argv[2], overwrite=True, shard_bytes=2**16)", path, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def kill_while_it_writes(path, folder, shards):
    process = start(path, folder)
    try:
        while len([*folder.rglob("*.partial")]) < shards:
            assert process.poll() is None, "it was done before it was killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    assert [*folder.rglob("*.partial")]  # the kill came while it wrote


@pytest.mark.parametrize("before", [False, True], ids=["new", "overwriting"])
def test_a_killed_build(before, tmp_path):
    folder, path = tmp_path / "data", write(tmp_path / "x.jsonl", questions(3000, words=200))
    old = write(tmp_path / "old.jsonl", questions(2))
    if before:
        build("instruct", {"train": [old]}, folder)
    kill_while_it_writes(path, folder, shards=3)
    if before:
        assert [*RecordSource(folder, "train")] == read_records(old, "instruct")
    else:
        with pytest.raises(ClaraError, match="holds no data set"):
            RecordSource(folder, "train")
    build("instruct", {"train": [path]}, folder, overwrite=True, shard_bytes=2**16)
    assert [*RecordSource(folder, "train")] == read_records(path, "instruct")
    assert not [*folder.rglob("*.partial")]
    assert {name.name for name in (folder / "clara_instruct").iterdir()} == {"1.0.0", ".lock"}


def test_killed_between_taking_the_old_one_away_and_putting_the_new_one_there(tmp_path):
    old = write(tmp_path / "old.jsonl", questions(2))
    report = build("instruct", {"train": [old]}, tmp_path / "data")
    staging = report.directory.parent / ".building"
    staging.mkdir()
    report.directory.rename(staging / "previous")
    with pytest.raises(ClaraError, match="is there already"):
        build("instruct", {"train": [old]}, tmp_path / "data")
    assert len(RecordSource(tmp_path / "data", "train")) == 2


def test_a_full_disk_is_one_line(tmp_path):
    path = write(tmp_path / "x.jsonl", [QUESTION | {"answer": os.urandom(3000).hex()} for _ in range(100)])
    code = """if True:
        import resource, signal, sys
        from clara_jax import command
        from clara_jax.data.builders import build
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
        command.run(lambda: build("instruct", {"train": [sys.argv[1]]}, sys.argv[2]))
    """
    folder = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", code, path, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written: File too large" in done.stderr
    assert {name.name for name in (folder / "clara_instruct").iterdir()} == {".lock"}
