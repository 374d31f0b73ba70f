"""Statistics of data whose answers are known beforehand."""

import argparse
import json

import numpy as np
import pytest
from matplotlib.image import imread

from clara_jax.data.build_command import add_arguments, add_statistics_arguments, run, run_statistics
from clara_jax.data.builders import build
from clara_jax.data.builders.overlap import RUN, Overlap, runs
from clara_jax.data.builders.statistics import measure
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import parse_record
from tests.data.builders.files import LINES, questions, write

LONG = " ".join(f"w{i}" for i in range(40))
NEAR = " ".join(f"w{i}" if i != 20 else "changed" for i in range(40))  # 33 runs of eight words, 8 of them changed


def records(name, *rows):
    """(question, documents, answer[, positives]) of each."""
    made = []
    for number, (question, documents, answer, *positives) in enumerate(rows, start=1):
        fields = {"question": question, "docs": documents, "answer": answer, "pos_index": sum(positives, [])}
        made.append(parse_record(fields, "end_to_end", f"{name}:{number}"))
    return made


TRAIN = records(
    "t",
    ("Who is Ann?", ["Ann is a smith.", "b c d"], "a smith", [0]),
    ("who is  ANN", ["ann is a smith", "B, c, d!"], "A smith", [0]),  # the first again, in other dress
    ("Where is Bo?", ["b c d", "b c d"], "Rome"),
    ("When?", [LONG], "now"),
)
EVAL = records(
    "e",
    ("Who is Ann?", ["Ann is a smith.", "b c d"], "a smith", [0]),  # train's first
    ("Is Ann who?", ["new one", "Ann is a smith!"], "nobody", [0]),
    ("Why?", [NEAR, "something else"], "because", [0]),
    ("Who?", ["new one"], "me"),
)


def test_lengths_and_memory():
    about = measure({"train": TRAIN}, doc_max_length=20, compress_rate=4)["splits"]["train"]
    documents = about["lengths"]["documents"]
    assert about["records"] == 4
    assert (documents["count"], documents["min"], documents["max"], documents["total"]) == (
        7,
        3,
        40,
        4 + 3 + 4 + 3 + 6 + 40,
    )
    assert documents["mean"] == pytest.approx(60 / 7, abs=0.01) and documents["median"] == 3
    histogram = documents["histogram"]
    assert sum(histogram["counts"]) == 7 and histogram["counts"][0] == 4 and histogram["edges"][:2] == [3, 4]
    assert about["lengths"]["questions"]["total"] == 3 + 3 + 3 + 1
    assert about["lengths"]["answers"]["max"] == 2
    assert about["documents_per_record"]["mean"] == 7 / 4
    memory = about["memory"]
    assert memory["memory_tokens_per_document"] == 5 and memory["cut_documents"] == 1 and memory["lost_tokens"] == 20
    assert memory["document_tokens_read"] == 40 and memory["effective_compress_rate"] == pytest.approx(
        40 / 35, abs=1e-3
    )


def test_duplicates():
    duplicates = measure({"train": TRAIN})["splits"]["train"]["duplicates"]
    assert duplicates["records"] == {"found": 1, "of": 4, "examples": [{"record": "t:2", "first": "t:1"}]}
    assert duplicates["questions"] == {"found": 1, "of": 4, "examples": [{"record": "t:2", "first": "t:1"}]}
    assert duplicates["documents"] == {"all": 7, "different": 3}
    assert duplicates["records_with_a_document_twice"] == {"found": 1, "of": 4, "examples": [{"record": "t:3"}]}


def test_leaks():
    leaks = measure({"eval": EVAL, "train": TRAIN})["leaks"]["eval"]

    def found(name):
        return leaks[name]["found"], leaks[name]["examples"]

    assert found("records") == (1, [{"held_out": "e:1", "train": "t:1"}])
    assert found("questions") == (1, [{"held_out": "e:1", "train": "t:1"}])
    assert found("reworded_questions") == (1, [{"held_out": "e:2", "train": "t:1"}])
    assert found("gold_documents") == (1, [{"held_out": "e:1", "train": "t:1"}])
    assert found("documents") == (2, [{"held_out": "e:1", "train": "t:1"}, {"held_out": "e:2", "train": "t:1"}])
    assert leaks["different_documents"] == {"found": 2, "of": 5}
    assert found("overlapping_documents") == (1, [{"held_out": "e:3", "share": round(25 / 33, 3)}])


def test_nothing_leaks_where_nothing_is_shared():
    leaks = measure({"train": TRAIN, "eval": records("e", ("Else?", ["quite another"], "x"))})["leaks"]["eval"]
    assert all(leak["found"] == 0 for leak in leaks.values())


def test_splits_do_not_depend_on_each_other_beyond_leaks():
    together = measure({"train": TRAIN, "eval": EVAL})["splits"]
    assert together == {
        name: measure({name: split})["splits"][name] for name, split in (("train", TRAIN), ("eval", EVAL))
    }


def test_runs_of_words():
    words = [f"w{i}" for i in range(20)]
    found = runs(words)
    assert len(found) == 20 - RUN + 1 == len(np.unique(found)) and len(runs(words[: RUN - 1])) == 0
    assert (runs(words[3:]) == found[3:]).all()
    assert runs(words[:RUN])[0] != runs(words[:RUN][::-1])[0]
    overlap = Overlap([found, runs(words[:2]), runs([f"x{i}" for i in range(10)])])
    assert overlap.shares().tolist() == [0, 0, 0]
    overlap.meet(["before", *words[:10], "after"])
    assert overlap.shares().tolist() == [3 / 13, 0, 0]


# --- the commands ---


def command(add, function, *arguments):
    parser = argparse.ArgumentParser()
    add(parser)
    function(parser.parse_args([str(argument) for argument in arguments]))


def statistics(*arguments):
    command(add_statistics_arguments, run_statistics, *arguments)


@pytest.mark.parametrize("stage", LINES)
def test_from_files_and_from_a_data_set(stage, tmp_path, capsys):
    lines = {"retrieval": LINES["retrieval"][:2]}.get(stage, LINES[stage])
    train, held_out = write(tmp_path / "t.jsonl", lines), write(tmp_path / "e.jsonl.gz", lines)
    statistics(stage, "--train", train, "--eval", held_out, "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert f"train: {len(lines)} records" in printed.out
    assert "eval against train" in printed.out and "(100.00%)" in printed.out
    report = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert report["unit"] == "words" and report["leaks"]["eval"]["records"]["found"] == len(lines)
    image = imread(tmp_path / "out" / "lengths.png")
    assert min(image.shape[:2]) > 200 and image[..., :3].std() > 0
    build(stage, {"train": [train], "eval": [held_out]}, tmp_path / "data")
    statistics("--data", tmp_path / "data")
    assert capsys.readouterr().out == printed.out


def test_limit_and_tokenizer_options(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", questions(9))
    statistics("instruct", "--train", path, "--limit", "4")
    assert "train: 4 records" in capsys.readouterr().out
    for arguments, message in (
        (["instruct"], "name a stage and files"),
        (["--train", path], "name a stage and files"),
        (["instruct", "--data", tmp_path], "leave out STAGE"),
        (["instruct", "--train", path, "--limit", "0"], "--limit: 0 must be at least 1"),
        (["instruct", "--train", path, "--compress-rate", "0"], "--compress-rate: 0 must be from 1"),
        (["instruct", "--train", path, "--tokenizer", "no/such/base"], "no/such/base"),
    ):
        with pytest.raises(ClaraError, match=message):
            statistics(*arguments)


def test_the_build_command(tmp_path, capsys):
    train = write(tmp_path / "t.jsonl", [*LINES["instruct"], b"{"])
    held_out = write(tmp_path / "e.jsonl", LINES["instruct"])
    folder = tmp_path / "data"
    arguments = ["instruct", "--train", train, "--eval", held_out, "--output", folder]
    with pytest.raises(ClaraError, match="t.jsonl:3: column .: not JSON"):
        command(add_arguments, run, *arguments)
    capsys.readouterr()
    command(add_arguments, run, *arguments, "--on-error", "skip")
    printed = capsys.readouterr()
    metadata = json.loads((folder / "clara_instruct" / "1.0.0" / "metadata.json").read_text())
    train_report = next(line for line in printed.out.splitlines() if line.startswith("  train:"))
    assert "2 records, 1 shards, " in train_report and "bytes, 1 rejected" in train_report
    assert metadata["splits"]["train"]["fingerprint"] in train_report and metadata["fingerprint"] in printed.out
    assert "rejected.jsonl" in printed.out and "/2 " in printed.err  # bars know where they end
    with pytest.raises(ClaraError, match="--overwrite"):
        command(add_arguments, run, *arguments, "--on-error", "skip")
    command(add_arguments, run, *arguments, "--on-error", "skip", "--overwrite")
