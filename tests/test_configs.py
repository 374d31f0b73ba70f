"""Every config file resolves; the paper's say what Table 10 says; every field can be set by a flag."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from clara_jax import configs, train
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import data_files
from clara_jax.training.config_parsing import from_json, resolve, to_json
from clara_jax.training.schedules import scaffold_at
from clara_jax.training.stage_config import entry_kind
from tests.configurations import changed
from tests.locations import shared_data

NAMES = configs.names()
PAPER = [name for name in NAMES if name.startswith(("mistral7b", "phi4_mini"))]


def load(name, arg=None):
    return importlib.import_module(f"clara_jax.configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_resolves(name):
    run = resolve(load(name))
    assert from_json(to_json(run)) == run
    module = importlib.import_module(f"clara_jax.configs.{name}")
    assert importlib.import_module(f"configs.{name}").get_config is module.get_config
    assert f"python -m clara_jax.train --workdir runs/{name}" in module.__doc__
    assert f"--config configs/{name}.py" in module.__doc__


def test_the_six_of_the_paper_are_there():
    stages = ("scp", "instruct", "end_to_end")
    assert set(PAPER) == {f"{model}_{stage}" for model in ("mistral7b", "phi4_mini") for stage in stages}


@pytest.mark.parametrize("name", PAPER)
def test_table_10(name):
    run = resolve(load(name))
    (stage,) = run.stages
    optimizer, topk = stage.optimizer, stage.topk
    assert name.endswith(stage.name)
    mistral = name.startswith("mistral")
    assert run.model.base == ("mistralai/Mistral-7B-Instruct-v0.2" if mistral else "microsoft/Phi-4-mini-instruct")
    clara = run.clara
    assert (clara.lora_rank, clara.lora_alpha, clara.lora_dropout) == (16, 32, 0.1)
    assert (clara.doc_max_length, clara.compress_rate, clara.memory_tokens) == (256, 16, 16)
    assert (optimizer.schedule, optimizer.warmup, optimizer.clip_norm) == ("cosine", 0.03, 1.0)
    assert (optimizer.epochs, optimizer.steps) == (1.0, None)
    if stage.name == "end_to_end":
        assert (optimizer.batch_size, optimizer.learning_rate) == (32, 5e-6)
        assert (topk.candidates, topk.k, topk.temperature) == (20, 5, 0.02)
        assert (topk.method, topk.score_normalization, stage.objective.marginal_weight) == ("iterative", "none", 0)
    else:
        assert (optimizer.batch_size, optimizer.learning_rate, stage.objective.mse_weight) == (128, 1e-4, 0.1)


@pytest.mark.parametrize("name, arg", [("smoke", None), ("demo", None), ("smollm2", "size=full")])
def test_our_own_choose_by_the_relaxed_sort(name, arg):
    """As docs/topk.md concludes: NeuralSort, at a temperature that stays what it is."""
    (topk,) = (stage.topk for stage in resolve(load(name, arg)).stages if stage.name == "end_to_end")
    chosen = (topk.method, topk.temperature, topk.temperature_schedule, topk.score_normalization)
    assert chosen == ("neuralsort", 0.1, "constant", "none") and not topk.learn_temperature


def test_arguments_of_the_paper_configs():
    run = resolve(load("mistral7b_end_to_end", "rate=128,data=/d,schedule=constant,start=runs/a,base=/models/m"))
    assert run.clara.memory_tokens == 2
    assert run.stages[0].optimizer.schedule == "constant"
    assert run.stages[0].data.train == ("/d/stage2_end_to_end.train.jsonl",)
    assert (run.initial_checkpoint, run.model.base) == ("runs/a", "/models/m")
    for rate in (4, 16, 32, 64, 128, 256):
        assert resolve(load("phi4_mini_scp", f"rate={rate}")).clara.memory_tokens == 256 // rate


@pytest.mark.parametrize("name", PAPER)
def test_like_the_paper_or_the_release(name):
    paper, release = (resolve(load(name, f"like={like}")) for like in ("paper", "release"))
    assert paper == resolve(load(name))
    (one,), (other,) = paper.stages, release.stages
    assert (one.optimizer.betas, other.optimizer.betas) == ((0.9, 0.999), (0.9, 0.95))
    is_last = one.name == "end_to_end"
    assert release.clara.max_length == (1024 if is_last else 2048)
    assert (other.optimizer.schedule, other.optimizer.minimum_ratio) == (
        ("constant", 0.1) if is_last else ("cosine_with_minimum", 0.1)
    )
    assert other.optimizer.warmup == (0 if is_last else 0.03) and other.topk.k == 5
    assert one.reset == other.reset == (("lora/generator",) if one.name == "instruct" else ())
    # Nothing else differs.
    optimizer = {field: getattr(one.optimizer, field) for field in ("betas", "schedule", "warmup")}
    same = dataclasses.replace(release, stages=(changed(other, optimizer=optimizer),), clara=paper.clara)
    assert same == paper
    with pytest.raises(ClaraError, match="like=code: it must be one of paper, release"):
        load(name, "like=code")


def test_the_schedule_goes_before_what_it_is_like():
    for like, schedule in (("paper", "constant"), ("release", "cosine")):
        (stage,) = resolve(load("mistral7b_end_to_end", f"like={like},schedule={schedule}")).stages
        assert stage.optimizer.schedule == schedule


def test_smollm2_arguments():
    run = resolve(load("smollm2"))
    assert [stage.name for stage in run.stages] == ["autoencode_16", "instruct_16", "instruct_32", "instruct_64"]
    assert all(stage.optimizer.total_steps(stage.data.limit or 1) >= 24 for stage in run.stages)
    assert (run.model.base, run.model.precision) == ("smollm2", "auto")
    run = resolve(load("smollm2", "stages=end_to_end+scp,rate=8,size=tiny,data=/d,base=/b,seed=3"))
    assert [stage.name for stage in run.stages] == ["end_to_end", "scp"]
    assert all(2 <= stage.optimizer.steps <= 4 for stage in run.stages)
    assert (run.clara.compress_rate, run.model.base, run.seed) == (8, "/b", 3)
    files = [entry_kind(name)[1] for stage in run.stages for name in stage.data.train + stage.evaluation.data]
    assert all(Path(file).is_relative_to("/d") for file in files)
    full = resolve(load("smollm2", "size=full,rate=16")).stages
    assert [stage.name for stage in full[-3:]] == ["instruct_256_16", "instruct", "end_to_end"]


@pytest.mark.parametrize("size", ["tiny", "short", "full"])
def test_the_scaffold_of_smollm2_falls_once_and_for_all(size):
    """At the end of the second section; without it nothing else changes."""
    stages = resolve(load("smollm2", f"size={size}")).stages
    numbers = [(stage.objective, stage.optimizer.steps or 100) for stage in stages]
    ends = [scaffold_at(objective, steps, steps) for objective, steps in numbers]
    assert (stages[0].objective.scaffold, stages[1].objective.scaffold) == (1, 1) and ends == [
        1,
        *[0] * (len(stages) - 1),
    ]
    without = resolve(load("smollm2", f"size={size},scaffold=0")).stages
    for one, other in zip(stages, without, strict=True):
        assert scaffold_at(other.objective, 10, 0) == scaffold_at(other.objective, 10, 10) == 0
        assert dataclasses.replace(other, objective=one.objective) == one


@pytest.mark.parametrize("rate", [4, 8, 16, 64])
def test_the_rate_of_smollm2_is_that_of_its_last_section(rate):
    for size in ("short", "full"):
        run = resolve(load("smollm2", f"size={size},rate={rate},stages=read"))
        assert run.stages[-1].data.compress_rate == rate
        assert len({stage.name for stage in run.stages}) == len(run.stages)


@pytest.mark.parametrize("size", ["tiny", "short", "full"])
def test_smollm2_with_documents_as_text_has_the_same_questions(size):
    memory, text = (resolve(load("smollm2", f"size={size},documents={documents}")) for documents in ("memory", "text"))
    assert text.clara == dataclasses.replace(memory.clara, max_length=2048)
    stages = {stage.name: stage for stage in memory.stages}
    assert [name for name in stages if name != "autoencode_16"] == [stage.name for stage in text.stages]
    for other in text.stages:
        one = stages[other.name]
        assert other.subtrees == ("lora/generator",) and other.data.documents == "text"
        of_data = ("documents", "pack", "buckets", "train", "weights", "memories")
        back = changed(
            other,
            data={name: getattr(one.data, name) for name in of_data},
            optimizer=dict(accumulate=one.optimizer.accumulate),
            evaluation=dict(data=one.evaluation.data),
            objective=dict(scaffold=0.0, scaffold_end=None, scaffold_steps=None),
        )
        scaffold = {name: getattr(one.objective, name) for name in ("scaffold", "scaffold_end", "scaffold_steps")}
        assert changed(back, objective=scaffold) == one
        of_text = ("autoencode", "continue")
        for entries, found in ((one.data.train, other.data.train), (one.evaluation.data, other.evaluation.data)):
            assert list(found) == [name for name in entries if entry_kind(name)[0] not in of_text]


def test_smoke_with_documents_as_text_differs_in_nothing_else():
    memory, text = resolve(load("smoke")), resolve(load("smoke", "text"))
    assert [stage.subtrees for stage in text.stages] == [("base", "lora/generator"), *[("lora/generator",)] * 2]
    back = [
        changed(other, data=dict(documents="memory"), trains=one.trains)
        for one, other in zip(memory.stages, text.stages, strict=True)
    ]
    assert dataclasses.replace(text, stages=tuple(back)) == memory
    with pytest.raises(ClaraError, match="config argument 'texts': it must be ci, text, retrieval or mips"):
        load("smoke", "texts")


def test_contrastive_query_reasoners_have_the_data_and_steps_of_end_to_end():
    stages = {stage.name: stage for stage in resolve(load("smoke", "retrieval")).stages}
    (last,) = (stage for stage in resolve(load("smoke")).stages if stage.name == "end_to_end")
    assert list(stages) == ["scp", "instruct", "retrieval"]
    assert dataclasses.replace(stages["retrieval"], name="end_to_end") == last
    config = resolve(load("smollm2", "stages=end_to_end+retrieval,start=runs/first"))
    one, other = config.stages
    # A contrastive loss chooses nothing, and has another temperature.
    assert dataclasses.replace(other, name="end_to_end", topk=one.topk) == one
    assert config.initial_checkpoint == "runs/first" and not config.model.base


def test_smollm2_finds_its_data():
    data = shared_data()
    for stage in resolve(load("smollm2", f"size=full,rate=16,data={data}")).stages:
        for entries in (stage.data.train, stage.evaluation.data):
            assert data_files([entry_kind(name)[1] for name in entries], "data")
        assert not set(stage.data.train) & set(stage.evaluation.data)


@pytest.mark.parametrize(
    "name, arg, message",
    [
        ("smollm2", "sise=tiny", "'sise=tiny': there is no such key; did you mean size?"),
        (
            "smollm2",
            "tiny",
            "'tiny': write key=value; known are stages, rate, places, size, scaffold, documents, start, ",
        ),
        ("smollm2", "scaffold=2", "scaffold=2: it must be one of 0, 1"),
        ("smollm2", "size=huge", "size=huge: it must be one of tiny, short, full"),
        ("smollm2", "documents=texts", "documents=texts: it must be one of memory, text"),
        ("smollm2", "stages=read,rate=2", "rate=2: the curriculum begins at 4"),
        ("smollm2", "stages=scp+stage2", "stages=stage2: it must be one of scp, instruct, end_to_end, retrieval, read"),
        ("smollm2", "rate=x", "'rate=x': rate must be a whole number"),
        ("mistral7b_scp", "schedule=constant", "there is no such key"),
        ("mistral7b_end_to_end", "schedule=linear", "it must be one of cosine, constant"),
    ],
)
def test_bad_arguments(name, arg, message):
    with pytest.raises(ClaraError) as error:
        load(name, arg)
    assert message in str(error.value)


def test_a_rate_that_does_not_divide():
    with pytest.raises(ClaraError, match="compress_rate is 24; it must divide doc_max_length 256"):
        resolve(load("smollm2", "rate=24"))


def test_optional_fields_can_be_filled_in_later():
    config = load("smollm2", "size=full,stages=scp")
    config.scp.optimizer.steps, config.scp.optimizer.epochs, config.scp.data.limit = 3, 0.0, 10
    config.scp.trains = ("lora/generator",)
    config.initial_checkpoint = "runs/a"
    run = resolve(config)
    stage = run.stages[0]
    assert (stage.optimizer.steps, stage.optimizer.epochs) == (3, None)
    assert (stage.data.limit, stage.trains) == (10, ("lora/generator",))
    assert run.initial_checkpoint == "runs/a"
    with pytest.raises(TypeError):
        config.scp.optimizer.steps = "many"


def test_a_configuration_is_taken_by_its_name_from_any_folder(tmp_path, monkeypatch):
    """A file of that name comes first; one that is not there is refused with the nearest name."""
    monkeypatch.chdir(tmp_path)
    found = train.parse(train.parser(), ["train", "--config=smoke:ci", "--config.seed=5"]).config
    assert (found.seed, found.stages) == (5, ("scp", "instruct", "end_to_end"))
    Path("smoke").write_text("def get_config(arg=None): raise ValueError('mine')")
    with pytest.raises(ClaraError, match="ValueError: mine"):
        train.parse(train.parser(), ["train", "--config=smoke"])
    with pytest.raises(ClaraError, match="smokes: there is no such file; did you mean smoke?"):
        train.parse(train.parser(), ["train", "--config", "smokes:ci"])
    with pytest.raises(ClaraError, match="name a file, or one of demo, mistral"):
        train.parse(train.parser(), ["train", "--config", "mine.py"])


def test_what_is_kept_on_a_chip_is_the_configurations_argument():
    """The same effective batch, in parts that divide it; without the argument as before."""
    for stage, wanted in (("scp", ("mlp", 1)), ("instruct", ("products", 4)), ("end_to_end", ("full", 1))):
        plain, chip = (resolve(load(f"mistral7b_{stage}", argument)) for argument in ("", "chip=v5e"))
        (before,), (after,) = plain.stages, chip.stages
        assert (plain.model.remat, before.optimizer.accumulate) == ("dots", 1)
        assert (chip.model.remat, after.optimizer.accumulate) == wanted
        assert after.optimizer.batch_size == before.optimizer.batch_size
        assert after.optimizer.batch_size % after.optimizer.accumulate == 0
    with pytest.raises(ClaraError, match="chip=v9: it must be one of v5e, v6e, v5p"):
        load("phi4_mini_scp", "chip=v9")
