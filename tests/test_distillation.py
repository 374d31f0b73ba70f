"""The benchmark of a teacher that reads texts, on a model of no size."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import distillation
from clara_jax.checkpoints import opening
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import merge, split
from clara_jax.model.sharding import put_rows
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stage_data import StageBatches, StageData, StageRecords
from clara_jax.training.stopping import StopSignal
from tests.tiny import with_adapters, write_base, write_records

STEPS = 6


@pytest.fixture(scope="module")
def start(tmp_path_factory, mesh):
    base = write_base(tmp_path_factory.mktemp("base"))
    clara = ClaraConfig(doc_max_length=64, compress_rate=8, lora_rank=4, lora_dropout=0.0, max_length=384)
    return with_adapters(opening.from_base(str(base), clara, mesh, "float32"))


@pytest.fixture(scope="module")
def teacher(start):
    """The same base with another adapter."""
    lora = start.params["lora"]
    other = jax.tree.map(lambda x: x + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape).astype("f4"), lora["generator"])
    return dataclasses.replace(start, params={**start.params, "lora": {**lora, "generator": other}})


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = write_records(tmp_path_factory.mktemp("records"), 16)
    stage = StageConfig(
        "instruct",
        data=dict(train=(f"{data}/instruct.jsonl",)),
        optimizer=dict(steps=STEPS, batch_size=4, learning_rate=3e-2, schedule="constant", warmup=1.0),
        objective=dict(mse_weight=0.0, ce_over="records"),
        topk=dict(k=2),
        evaluation=dict(data=(f"{data}/instruct.jsonl",), limit=4, answers=4, answer_tokens=3),
    )
    return RunConfig(reporting=dict(progress=False), model=ModelSection("scratch"), stages=(stage,))


def test_the_divergence_is_that_of_the_distributions(start):
    rng = np.random.default_rng(0)
    taught, states = (put_rows(rng.normal(size=(2, 3, 64)).astype("f4"), start.mesh) for _ in range(2))
    with jax.set_mesh(start.mesh):
        same = distillation.divergence(start.model, start.params, states, states)
        found = distillation.divergence(start.model, start.params, taught, states)
        parts = [start.model.logits(start.params, x) for x in (taught, states)]
    logits = [np.concatenate([np.asarray(part, float) for part in both], axis=-1) for both in parts]
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(axis=-1), rtol=1e-4)


@pytest.mark.slow
def test_every_weight_starts_anew_beside_the_teacher(config, start, teacher):
    read, alone, again, taught = distillation.measure(config, start, teacher, (0.0, 0.0, 5.0))
    assert (read["weight"], taught["weight"]) == (None, 5.0)
    assert alone["ce"] == again["ce"] and again["difference"] == [0, 0, 0]
    assert taught["ce"] != alone["ce"] and len(taught["values"]) == 4


@pytest.mark.slow
def test_the_student_comes_to_say_what_the_teacher_says(config, start, teacher):
    (stage,) = config.stages
    as_text = dataclasses.replace(stage, data=dataclasses.replace(stage.data, documents="text"))
    records = StageRecords.read(config, stage)
    memory, text = (StageData.encode(config, one, start, records) for one in (stage, as_text))
    batches = StageBatches.plan(config, Path(), 0, start, memory, STEPS, StopSignal())
    _, rest = split(start.params, stage.subtrees)
    frozen = {**rest, **distillation._adapter(teacher, start)}
    with jax.set_mesh(start.mesh):
        made = list(distillation.taught_batches(batches, text, start, STEPS))
        apart = []
        for weight in (0.0, 5.0):
            trained = distillation.train(start, stage, iter(made), STEPS, weight, frozen)
            loss, ce = distillation.taught_loss(start.model, merge(trained, frozen), made[0], 1.0)
            apart.append(float(loss - ce))
    for batch in made:  # the same targets, at the same places from the right
        width = min(batch.prompt.labels.shape[1], batch.teacher.labels.shape[1])
        np.testing.assert_array_equal(batch.prompt.labels[:, -width:], batch.teacher.labels[:, -width:])
        assert (batch.teacher.memory_index == -1).all() and (batch.prompt.memory_index >= 0).any()
    assert 0 < apart[1] < 0.7 * apart[0]


def test_a_section_that_is_none_is_refused():
    with pytest.raises(ClaraError, match="--length: 48 must be one of 16, 32, 64, 128, 256"):
        distillation.config_of(distillation.parser().parse_args(["--teacher", "nowhere", "--length", "48"]))
    config = distillation.config_of(distillation.parser().parse_args(["--teacher", "nowhere", "--length", "16"]))
    assert config.stages[0].objective.scaffold == 0 and config.stages[0].objective.scaffold_end is None


def test_a_teacher_of_another_base_is_refused(config, start, teacher):
    other = dataclasses.replace(teacher, base={**teacher.base, "hash": "another"})
    with pytest.raises(ClaraError, match="its base is another"):
        next(distillation.measure(config, start, other, (0.0,)))
