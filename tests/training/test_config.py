"""A config is checked once, in words, and comes back from JSON as it was."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict, config_dict

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.stages import STAGES
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.config_parsing import from_json, resolve, to_json
from clara_jax.training.stage_config import StageConfig


def stage(**fields):
    return StageConfig(**{"name": "scp", "train_data": ("a.jsonl",), "steps": 4, **fields})


def config(**fields):
    scp = ConfigDict(dict(train_data=("a.jsonl",), steps=4))
    return ConfigDict(dict(stages=("scp",), scp=scp, model=dict(base="smollm2"), **fields))


def test_resolve_fills_in_defaults_and_keeps_the_order_of_stages():
    given = config(mesh=[4, 2])
    given.end_to_end = ConfigDict(dict(train_data=["b.jsonl"], epochs=2, warmup=5))
    given.stages = ("end_to_end", "scp")
    run = resolve(given)
    assert [s.name for s in run.stages] == ["end_to_end", "scp"]
    assert run.stages[0].epochs == 2.0 and isinstance(run.stages[0].epochs, float)
    assert run.stages[0].train_data == ("b.jsonl",)
    assert run.mesh == (4, 2) and run.model.base == "smollm2" and run.clara == ClaraConfig()
    assert run.clara.lora_alpha == 32.0 and run.clara.lora_scale == 2.0 and run.clara.memory_tokens == 16


def test_json_round_trip():
    run = resolve(config(initial_checkpoint="runs/x"))
    text = json.dumps(to_json(run))
    assert from_json(json.loads(text)) == run
    changed = json.loads(text)
    changed["stages"][0]["batch_sise"] = 3
    with pytest.raises(ClaraError, match=r"config\.stages\[0\]\.batch_sise.*did you mean batch_size\?"):
        from_json(changed)


def test_zero_steps_on_the_command_line_stand_for_none():
    given = config()
    given.scp.steps, given.scp.epochs = 0, 1.0
    (only,) = resolve(given).stages
    assert only.steps is None and only.epochs == 1.0


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("sede", 1, r"config\.sede: there is no such field; did you mean seed\?"),
        ("scp.learning_rat", 1.0, r"config\.scp\.learning_rat: .*did you mean learning_rate\?"),
        ("clara.zzz", 1, r"config\.clara\.zzz: there is no such field; known are doc_max_length"),
        ("scp.batch_size", "many", r"config\.scp\.batch_size is 'many'; it must be a whole number"),
        ("scp.batch_size", 1.5, r"config\.scp\.batch_size is 1\.5; it must be a whole number"),
        ("scp.batch_size", True, r"config\.scp\.batch_size is True; it must be a whole number"),
        ("scp.learning_rate", "1e-4", r"learning_rate is '1e-4'; it must be a number"),
        ("scp.train_data", "a.jsonl", r"train_data is 'a\.jsonl'; it must be a tuple"),
        ("scp.betas", (0.9,), r"betas is .*; it must hold 2 values"),
        ("scp.betas", (0.9, "x"), r"betas\[1\] is 'x'; it must be a number"),
        ("scp.name", "instruct", None),
        ("clara", 3, r"config\.clara is 3; it must be a section"),
        ("instruct", 3, r"config\.instruct is 3; it must be a section"),
        ("instruct", ConfigDict(dict(train_data=("a",))), r"config\.instruct: give exactly one of steps and epochs"),
        ("stages", ("spc",), r"there is no stage 'spc'; did you mean scp\?"),
        ("stages", ("instruct",), r"names instruct, but there is no section config\.instruct"),
        ("stages", (), r"config\.stages is \(\); name at least one"),
        ("scp.train_data", config_dict.required_placeholder(tuple), r"config: "),
    ],
)
def test_refused_by_name(path, value, message):
    given = config(clara=ConfigDict(dict(compress_rate=16)))
    with given.unlocked(), given.ignore_type():
        *parents, name = path.split(".")
        node = given
        for parent in parents:
            node = node[parent]
        node[name] = value
    if message is None:  # the section's place names the stage, whatever it says itself
        assert resolve(given).stages[0].name == "scp"
        return
    with pytest.raises(ClaraError, match=message) as error:
        resolve(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(name="stage1"), "no stage 'stage1'"),
        (dict(train_data=()), "train_data is .*name at least one file"),
        (dict(steps=None), "exactly one of steps and epochs, neither"),
        (dict(epochs=1.0), "exactly one of steps and epochs, both"),
        (dict(steps=-1), "steps is -1; it must be at least 1"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(batch_size=6, accumulate=4), "accumulate is 4; it must divide batch_size 6"),
        (dict(learning_rate=0.0), "learning_rate is 0.0; it must be positive"),
        (dict(learning_rate=float("nan")), "learning_rate is nan"),
        (dict(schedule="cosin"), "schedule is 'cosin'; it must be one of cosine, constant, cosine_with_minimum"),
        (dict(minimum_ratio=1.5), "minimum_ratio"),
        (dict(warmup=1.5), "warmup is 1.5; from 1 on it is a whole number"),
        (dict(warmup=-0.1), "warmup"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(mse_weight=-1.0), "mse_weight"),
        (dict(mse_reduction="max"), "mse_reduction is 'max'"),
        (dict(topk_method="best"), "topk_method is 'best'; it must be one of iterative, gumbel, softsort"),
        (dict(score_normalization="max"), "score_normalization is 'max'; it must be one of none, standard"),
        (dict(temperature_schedule="line"), "temperature_schedule is 'line'; it must be one of constant, cosine"),
        (dict(temperature_schedule="cosine"), "temperature_end is None; it goes with cosine"),
        (dict(temperature_end=0.1), "temperature_end is 0.1; it goes with cosine"),
        (dict(temperature_schedule="steps"), r"temperature_steps is \(\); they go with temperature_schedule=steps"),
        (
            dict(temperature_schedule="steps", temperature_steps=(5, 3), temperature_values=(0.1, 0.2)),
            r"temperature_steps is \(5, 3\); they must rise",
        ),
        (
            dict(temperature_schedule="steps", temperature_steps=(5,), temperature_values=(0.1, 0.2)),
            r"temperature_values is \(0.1, 0.2\); give one for each of \(5,\)",
        ),
        (dict(learn_temperature=True), "learn_temperature is True; scp ranks nothing"),
        (dict(marginal_weight=0.1), "marginal_weight is 0.1; only end_to_end has that term"),
        (dict(eval_gradients=True), "eval_gradients is True; only end_to_end with memories has them"),
        (
            dict(name="end_to_end", documents="text", eval_gradients=True, eval_data=("e",)),
            "eval_gradients is True; only end_to_end with memories",
        ),
        (dict(name="end_to_end", eval_gradients=True), "eval_gradients is True; eval_data names no file"),
        (dict(documents="texts"), "documents is 'texts'; it must be one of memory, text"),
        (dict(name="retrieval", documents="text"), "documents is 'text'; retrieval ranks memories"),
        (dict(documents="text", pack=512), "pack is 512; with documents=text there are no documents' tokens to pack"),
        (
            dict(name="instruct", trains=("lora/generator",), memories="m"),
            "memories is 'm'; only end_to_end and retrieval read memories that are kept",
        ),
        (
            dict(name="end_to_end", documents="text", memories="m"),
            "memories is 'm'; with documents=text nothing reads them",
        ),
        (
            dict(documents="text", trains=("lora/generator", "lora/compressor")),
            r"trains is .*; with documents=text nothing reads lora/compressor; name lora/generator",
        ),
        (dict(documents="text", trains=("tokens/memory",)), "nothing reads tokens/memory"),
        (dict(documents="text", trains=("lora",)), "nothing reads lora;"),
        (
            dict(name="end_to_end", documents="text", learn_temperature=True),
            "learn_temperature is True; end_to_end ranks nothing with documents=text",
        ),
        (
            dict(name="end_to_end", documents="text", marginal_weight=0.1),
            "marginal_weight is 0.1; end_to_end ranks nothing with documents=text",
        ),
        (dict(name="end_to_end", top_k=5, candidates=4), "top_k is 5; it may not exceed candidates 4"),
        (dict(temperature=0.0), "temperature"),
        (dict(eval_every=5), "eval_every is 5; eval_data names no file"),
        (dict(trains=()), "trains"),
    ],
)
def test_stage_values(fields, message):
    with pytest.raises(ClaraError, match=message):
        stage(**fields)


@pytest.mark.parametrize("name", ["scp", "instruct", "end_to_end"])
def test_a_stage_with_documents_as_text_trains_the_generator_by_its_likelihood(name):
    text, memory = stage(name=name, documents="text"), stage(name=name)
    assert text.subtrees == ("lora/generator",) and text.stage.weights(text.objective) == {"ce": 1.0}
    assert stage(name=name, documents="text", trains=("base", "lora/generator")).subtrees == ("base", "lora/generator")
    assert not text.ranks and memory.ranks == (name == "end_to_end")
    assert memory.stage is STAGES[name] and memory.subtrees == STAGES[name].trains


def test_other_values():
    with pytest.raises(ClaraError, match=r"compress_rate is 24; it must divide doc_max_length 256: 1, 2, 4"):
        ClaraConfig(compress_rate=24)
    with pytest.raises(ClaraError, match="lora_dropout is 1.0"):
        ClaraConfig(lora_dropout=1.0)
    with pytest.raises(ClaraError, match="precision is 'fp16'; it must be one of auto, bfloat16, float32, mixed"):
        ModelSection(precision="fp16")
    with pytest.raises(ClaraError, match="remat"):
        ModelSection(remat="some")
    with pytest.raises(ClaraError, match="attention is 'flash'; it must be one of auto, xla, blockwise, splash, cudnn"):
        ModelSection(attention="flash")
    run = RunConfig(stages=(stage(),), model=ModelSection(base="smollm2"))
    for fields, message in [
        (dict(mesh=(-1, -1)), "mesh"),
        (dict(mesh=(0, 1)), "mesh"),
        (dict(mesh=(2,)), "mesh"),
        (dict(mesh=(2, 2, -1)), "mesh"),
        (dict(seed=-1), "seed"),
        (dict(model=ModelSection()), "config.model.base is empty"),
    ]:
        with pytest.raises(ClaraError, match=message):
            dataclasses.replace(run, **fields)
    assert run.mesh_sizes == dict(replica=-1, data=-1, model=1)
    assert dataclasses.replace(run, mesh=(2, 4, 2)).mesh_sizes == dict(replica=2, data=4, model=2)
    assert dataclasses.replace(run, model=ModelSection(), initial_checkpoint="runs/a").model.base == ""


def test_steps_from_epochs_and_warmup():
    assert stage(steps=7).total_steps(1000) == 7
    assert stage(steps=None, epochs=1.0, batch_size=32).total_steps(100) == 4
    assert stage(steps=None, epochs=0.5, batch_size=32).total_steps(128) == 2
    assert stage(steps=None, epochs=0.001, batch_size=32).total_steps(10) == 1
    assert stage(warmup=0.03).warmup_steps(100) == 3
    assert stage(warmup=20).warmup_steps(100) == 20
    assert stage(warmup=20).warmup_steps(10) == 9
    assert stage(warmup=0.5).warmup_steps(1) == 0
