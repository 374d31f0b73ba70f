"""Items by number, in this process and in others; a data set that is not what it was is refused."""

import json
import pickle

import grain
import numpy as np
import pytest

from clara_jax.data.builders import RecordSource, build, dataset_directory, read_metadata
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import read_records
from tests.data.builders.files import QUESTION, questions, write


@pytest.fixture
def place(tmp_path):
    path = write(tmp_path / "x.jsonl", questions(20))
    build("retrieval", {"train": [path]}, tmp_path / "data", shard_bytes=1000)
    return tmp_path / "data", read_records(path, "retrieval")


def test_by_number(place):
    folder, records = place
    source = RecordSource(folder, "train")
    assert source.stage == "retrieval" and source.with_positives == 20 and source.rejected == 0
    assert len(read_metadata(source.directory)["splits"]["train"]["shards"]) > 3
    order = np.random.default_rng(0).permutation(20)
    assert source.__getitems__(order) == [records[i] for i in order] == [source[i] for i in order]
    assert (
        source[-1] == records[-1] and source.__getitems__([3, 3]) == [records[3]] * 2 and source.__getitems__([]) == []
    )
    for index in (20, -21):
        with pytest.raises(IndexError, match="there is none at"):
            source[index]
    with pytest.raises(TypeError):
        source[1:2]


def test_pickled_it_is_small_and_opens_the_same(place):
    folder, records = place
    source = RecordSource(folder, "train")
    assert source[5] == records[5]  # a file is open
    stored = pickle.dumps(source)
    assert len(stored) < 1000
    assert [*pickle.loads(stored)] == records
    other = write(folder.parent / "other.jsonl", questions(19))
    build("retrieval", {"train": [other]}, folder, overwrite=True)
    with pytest.raises(ClaraError, match="was built anew while it was in use"):
        pickle.loads(stored)


def where(record):
    return record.where


def test_grain_reads_it(place):
    folder, records = place
    dataset = grain.MapDataset.source(RecordSource(folder, "train"))
    assert [*dataset] == records
    shuffled = dataset.seed(3).shuffle().map(where).batch(5, batch_fn=list)
    batches = [*shuffled]
    assert sorted(sum(batches, [])) == sorted(map(where, records)) and batches != [
        *dataset.map(where).batch(5, batch_fn=list)
    ]
    in_threads = [*dataset.seed(3).shuffle().to_iter_dataset()]
    assert [*map(where, in_threads)] == sum(batches, [])


def test_the_directory_of_a_data_set(place):
    folder, _ = place
    directory = folder / "clara_end_to_end" / "1.0.0"
    assert {dataset_directory(path) for path in (folder, directory.parent, directory)} == {directory}
    build("instruct", {"train": [write(folder.parent / "y.jsonl", [QUESTION])]}, folder)
    with pytest.raises(ClaraError, match="holds clara_end_to_end/1.0.0, clara_instruct/1.0.0; name one of them"):
        RecordSource(folder, "train")
    with pytest.raises(ClaraError, match="none: no such directory"):
        RecordSource(folder / "none", "train")
    with pytest.raises(ClaraError, match="holds no data set"):
        RecordSource(folder.parent, "train")


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.pop("splits"),
        lambda told: told.update(stage=[]),
        lambda told: told.update(splits={"train": []}),
        lambda told: told["splits"]["train"].pop("shards"),
        lambda told: told["splits"]["train"].update(fingerprint=3),
        lambda told: told["splits"]["train"].update(shards=["x"]),
        lambda told: told["splits"]["train"]["shards"][0].update(bytes="8"),
        lambda told: told["splits"]["train"]["shards"][0].update(records=-1),
    ],
)
def test_what_was_noted_of_a_data_set_is_what_was_written(place, change):
    folder, records = place
    metadata = dataset_directory(folder) / "metadata.json"
    told = json.loads(metadata.read_text())
    change(told)
    for sealed in (True, False):
        if not sealed:
            del told["checksum"]
        metadata.write_text(json.dumps(told))
        with pytest.raises(ClaraError, match=f"^{metadata}: is not what was written; build the data set again"):
            RecordSource(folder, "train")


def test_a_data_set_that_was_built_before_there_were_checksums(place):
    folder, records = place
    metadata = dataset_directory(folder) / "metadata.json"
    told = json.loads(metadata.read_text())
    told["splits"]["train"]["with_positives"] += 1
    metadata.write_text(json.dumps(told))
    with pytest.raises(ClaraError, match="is not what was written"):
        RecordSource(folder, "train")
    del told["checksum"]
    metadata.write_text(json.dumps(told))
    assert [*RecordSource(folder, "train")] == records


def test_damage_is_found(place):
    folder, _ = place
    directory = dataset_directory(folder)
    shard = sorted(directory.glob("*-train.array_record-*"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ClaraError, match=f"{shard.name}: has .* bytes, and had {len(content)}"):
        RecordSource(folder, "train")
    shard.unlink()
    with pytest.raises(ClaraError, match=f"{shard.name}: No such file or directory; the data set is not whole"):
        RecordSource(folder, "train")
    start = content.index(b"where") if b"where" in content else 200
    shard.write_bytes(content[:start] + bytes(byte ^ 1 for byte in content[start : start + 50]) + content[start + 50 :])
    with pytest.raises(ClaraError, match="build it again"):
        RecordSource(folder, "train").verify()
    with pytest.raises(ClaraError, match="split train cannot be read: .*; build it again"):
        list(RecordSource(folder, "train"))
    with pytest.raises(ClaraError, match="split train cannot be read: .*; build it again"):
        [RecordSource(folder, "train")[place] for place in range(20)]
    metadata = directory / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ClaraError, match="metadata.json: is not of format 1"):
        RecordSource(folder, "train")
    metadata.unlink()
    with pytest.raises(ClaraError, match="metadata.json: cannot be read"):
        RecordSource(folder, "train")
