"""A stage's records from files, built data sets and the synthetic corpus: the same tokens; changes are noticed."""

import json

import numpy as np
import pytest

from clara_jax.configs.common import merged
from clara_jax.data.builders import RecordSource, build
from clara_jax.data.synthetic import records, write
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import Rejects
from clara_jax.input_pipeline.encoding import sizes_of
from clara_jax.input_pipeline.mixture import Mixture
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.token_cache import TokenCache
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.loop import check_same_data
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stage_data import StageData, StageRecords
from tests.configurations import changed
from tests.data import tiny_tokenizer

WORLD = SyntheticConfig(records=dict(train=40, eval=6, candidates=3))


class Bundle:
    """What `StageData.encode` asks of one."""

    from clara_jax.input_pipeline.tokenization import ClaraTokenizer

    tokenizer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=96, memory_tokens=4, max_length=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write(WORLD, path, ["scp", "end_to_end"])
    for stage in ("scp", "end_to_end"):
        build(stage, {split: [f"{path}/{stage}.{split}.jsonl"] for split in ("train", "eval")}, path / "built")
    return path


def make(stage, train, held_out, folder, **fields):
    shared = dict(
        name=stage,
        data=dict(train=(train,)),
        optimizer=dict(steps=2, batch_size=4),
        evaluation=dict(data=(held_out,)),
    )
    stage_config = StageConfig(**merged(shared, fields))
    config = RunConfig(
        reporting=dict(progress=False),
        model=ModelSection("scratch"),
        stages=(stage_config,),
        synthetic=WORLD,
        token_cache=str(folder / "tokens"),
    )
    return config, stage_config


@pytest.mark.parametrize("stage", ["scp", "end_to_end"])
def test_one_content_from_everywhere(stage, folder):
    built = f"{folder}/built/clara_{stage}"
    sources = {
        "synthetic": ("synthetic:train", "synthetic:eval"),
        "files": (f"{folder}/{stage}.train.jsonl", f"{folder}/{stage}.eval.jsonl"),
        "built": (built, built),
    }
    found = {}
    for name, (train, held_out) in sources.items():
        config, stage_config = make(stage, train, held_out, folder)
        read = StageRecords.read(config, stage_config)
        data = StageData.encode(config, stage_config, Bundle, read)
        (part,) = read.train
        assert len(part) == len(data.examples) == 40 and len(read.held_out) == len(data.held_out) == 6
        found[name] = data
        assert isinstance(part, RecordSource) == isinstance(data.examples, TokenCache) == (name == "built")
        assert data.mixture is None and read.rejected == 0
    for name in ("files", "built"):
        np.testing.assert_array_equal(found[name].sizes, found["synthetic"].sizes)
        for mine, yours in zip(found[name].examples, found["synthetic"].examples, strict=True):
            for field in ("query", "prompt_ids", "memory_index", "labels", "positives"):
                np.testing.assert_array_equal(getattr(mine, field), getattr(yours, field))


def test_a_limit_and_several_entries(folder):
    config, stage_config = make("scp", f"{folder}/built/clara_scp", "synthetic:eval", folder, data=dict(limit=7))
    (part,) = StageRecords.read(config, stage_config).train
    assert [r.documents for r in part] == [r.documents for r in records(WORLD, "scp", "train")[:7]]
    stage_config = changed(stage_config, data=dict(train=("synthetic:eval", f"{folder}/built/clara_scp"), limit=None))
    read = StageRecords.read(config, stage_config)
    assert [len(part) for part in read.train] == [6, 40] and isinstance(read.train[1], RecordSource)
    data = StageData.encode(config, stage_config, Bundle, read)
    assert [example.index for example in data.examples] == list(range(46)) and len(data.sizes) == 46
    np.testing.assert_array_equal(data.sizes, sizes_of(data.examples))
    assert len(data.documents) >= len({d for part in read.train for r in part for d in r.documents})


def test_entries_with_weights(folder):
    """A quarter of all draws from six records, the others from the forty that were built."""
    config, stage_config = make("scp", "synthetic:eval", "synthetic:eval", folder)
    built = f"{folder}/built/clara_scp"
    stage_config = changed(
        stage_config, data=dict(train=("synthetic:eval", built), weights=(1.0, 3.0)), optimizer=dict(batch_size=8)
    )
    read = StageRecords.read(config, stage_config)
    data = StageData.encode(config, stage_config, Bundle, read)
    assert data.mixture == Mixture((6, 40), (1.0, 3.0))
    plan = BatchPlan(data.sizes, data.ladder, 8, 30, 1, data.mixture)
    drawn = np.concatenate([plan.rows(step) for step in range(30)])
    assert np.sum(drawn < 6) == 60 and set(drawn) == set(range(46))
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ClaraError, match=r"config\.(scp\.)?data\.weights(\[1\])? is"):
            changed(stage_config, data=dict(weights=weights))


@pytest.mark.parametrize("stage", ["scp", "end_to_end"])
def test_documents_as_text_are_the_same_records_in_every_step(stage, folder):
    config, stage_config = make(stage, f"{folder}/built/clara_{stage}", "synthetic:eval", folder, topk=dict(k=2))
    drawn = []
    for documents in ("memory", "text"):
        read = StageRecords.read(config, stage_config)
        data = StageData.encode(config, changed(stage_config, data=dict(documents=documents)), Bundle, read)
        plan = BatchPlan(data.sizes, data.ladder, 8, 30, 1)
        drawn.append([[data.examples[place].where for place in plan.rows(step)] for step in range(30)])
    assert drawn[0] == drawn[1] and isinstance(data.examples, TokenCache)
    assert not data.documents and data.ladder[0].documents == 0 and data.encoding.documents == "text"


def test_lines_that_are_no_records_are_put_aside(folder, tmp_path):
    lines = (folder / "scp.train.jsonl").read_text().splitlines()
    (tmp_path / "scp.jsonl").write_text("\n".join([*lines[:2], "{", *lines[2:5], '{"docs": []}']))
    config, stage_config = make("scp", str(tmp_path / "scp.jsonl"), "synthetic:eval", folder)
    with pytest.raises(ClaraError, match="scp.jsonl:3: column 1"):
        StageRecords.read(config, stage_config)
    with Rejects(tmp_path / "rejected.jsonl") as rejects:
        read = StageRecords.read(config, stage_config, rejects)
    assert [len(part) for part in read.train] == [5] and read.rejected == 2
    assert StageData.encode(config, stage_config, Bundle, read).rejected == 2
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{tmp_path}/scp.jsonl:{number}" for number in (3, 7)]


def test_a_data_set_of_another_stage_is_refused(folder):
    config, stage_config = make("scp", f"{folder}/built/clara_end_to_end", "synthetic:eval", folder)
    with pytest.raises(ClaraError, match="config.scp.data.train: .* was built for end_to_end"):
        StageRecords.read(config, stage_config)


def test_records_that_change_are_noticed(folder, tmp_path):
    changed = tmp_path / "scp.jsonl"
    lines = (folder / "scp.train.jsonl").read_text().splitlines()
    changed.write_text("\n".join(lines))
    config, stage_config = make("scp", str(changed), "synthetic:eval", folder)
    began = check_same_data(config, None, [StageRecords.read(config, stage_config)])
    assert check_same_data(config, json.loads(json.dumps(began)), [StageRecords.read(config, stage_config)]) == began
    changed.write_text("\n".join([*lines[:-1], lines[-1].replace('["', '["A ', 1)]))
    with pytest.raises(ClaraError, match="config.scp.data.train: the records have changed since the run began"):
        check_same_data(config, began, [StageRecords.read(config, stage_config)])
