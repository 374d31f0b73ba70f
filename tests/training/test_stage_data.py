"""A stage's records from files, built data sets and the synthetic corpus: the same tokens; changes are noticed."""

import dataclasses
import json

import numpy as np
import pytest

from clara_jax.data.builders import RecordSource, build
from clara_jax.data.synthetic import SyntheticConfig, records, write
from clara_jax.data.token_cache import TokenCache
from clara_jax.errors import ClaraError
from clara_jax.training.config import ModelSection, RunConfig, StageConfig
from clara_jax.training.loop import check_same_data
from clara_jax.training.stage_data import StageData, StageRecords
from tests.data import tiny_tokenizer

WORLD = SyntheticConfig(train_records=40, eval_records=6, candidates=3)


class Bundle:
    """What `StageData.encode` asks of one."""

    from clara_jax.data.tokenization import ClaraTokenizer

    tokenizer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=96, memory_tokens=4, max_length=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write(WORLD, path, ["scp", "end_to_end"])
    for stage in ("scp", "end_to_end"):
        build(stage, {split: [f"{path}/{stage}.{split}.jsonl"] for split in ("train", "eval")}, path / "built")
    return path


def make(stage, train, held_out, folder, **fields):
    own = StageConfig(name=stage, train_data=(train,), eval_data=(held_out,), steps=2, batch_size=4, **fields)
    config = RunConfig(
        model=ModelSection("scratch"),
        stages=(own,),
        synthetic=WORLD,
        token_cache=str(folder / "tokens"),
        progress=False,
    )
    return config, own


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
        config, own = make(stage, train, held_out, folder)
        read = StageRecords.read(config, own)
        data = StageData.encode(config, own, Bundle, read)
        assert len(read.train) == len(data.examples) == 40 and len(read.held_out) == len(data.held_out) == 6
        found[name] = data
        assert isinstance(read.train, RecordSource) == isinstance(data.examples, TokenCache) == (name == "built")
    for name in ("files", "built"):
        np.testing.assert_array_equal(found[name].sizes, found["synthetic"].sizes)
        for mine, yours in zip(found[name].examples, found["synthetic"].examples, strict=True):
            for field in ("query", "prompt_ids", "memory_index", "labels", "positives"):
                np.testing.assert_array_equal(getattr(mine, field), getattr(yours, field))


def test_a_limit_and_a_mixture(folder):
    config, own = make("scp", f"{folder}/built/clara_scp", "synthetic:eval", folder, train_limit=7)
    assert [r.documents for r in StageRecords.read(config, own).train] == [
        r.documents for r in records(WORLD, "scp", "train")[:7]
    ]
    own = dataclasses.replace(own, train_data=(f"{folder}/built/clara_scp", "synthetic:eval"), train_limit=None)
    assert len(StageRecords.read(config, own).train) == 46


def test_a_data_set_of_another_stage_is_refused(folder):
    config, own = make("scp", f"{folder}/built/clara_end_to_end", "synthetic:eval", folder)
    with pytest.raises(ClaraError, match="config.scp.train_data: .* was built for end_to_end"):
        StageRecords.read(config, own)


def test_records_that_change_are_noticed(folder, tmp_path):
    changed = tmp_path / "scp.jsonl"
    lines = (folder / "scp.train.jsonl").read_text().splitlines()
    changed.write_text("\n".join(lines))
    config, own = make("scp", str(changed), "synthetic:eval", folder)
    began = check_same_data(config, None, [StageRecords.read(config, own)])
    assert check_same_data(config, json.loads(json.dumps(began)), [StageRecords.read(config, own)]) == began
    changed.write_text("\n".join([*lines[:-1], lines[-1].replace('["', '["A ', 1)]))
    with pytest.raises(ClaraError, match="config.scp.train_data: the records have changed since the run began"):
        check_same_data(config, began, [StageRecords.read(config, own)])
