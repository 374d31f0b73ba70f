"""A config is checked once, in words, and comes back from JSON as it was."""

import dataclasses
import json
import typing

import pytest
from ml_collections import ConfigDict, config_dict

from clara_jax.data.synthetic_world import SYNTHETIC_NAMES
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.stages import STAGES
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.config_parsing import from_json, resolve, to_json
from clara_jax.training.old_names import RUN_NAMES, STAGE_NAMES, STAGE_TOPK_ADDED
from clara_jax.training.stage_config import OptimizerConfig, StageConfig
from tests.configurations import stage


def config(**fields):
    scp = ConfigDict(dict(data=dict(train=("a.jsonl",)), optimizer=dict(steps=4)))
    return ConfigDict(dict(stages=("scp",), scp=scp, model=dict(base="smollm2"), **fields))


def test_resolve_fills_in_defaults_and_keeps_the_order_of_stages():
    given = config(mesh=[4, 2])
    given.end_to_end = ConfigDict(dict(data=dict(train=["b.jsonl"]), optimizer=dict(epochs=2, warmup=5)))
    given.stages = ("end_to_end", "scp")
    run = resolve(given)
    assert [s.name for s in run.stages] == ["end_to_end", "scp"]
    epochs = run.stages[0].optimizer.epochs
    assert epochs == 2.0 and isinstance(epochs, float)
    assert run.stages[0].data.train == ("b.jsonl",)
    assert run.mesh == (4, 2) and run.model.base == "smollm2" and run.clara == ClaraConfig()
    assert run.clara.lora_alpha == 32.0 and run.clara.lora_scale == 2.0 and run.clara.memory_tokens == 16


def test_json_round_trip():
    run = resolve(config(initial_checkpoint="runs/x"))
    text = json.dumps(to_json(run))
    assert from_json(json.loads(text)) == run
    changed = json.loads(text)
    changed["stages"][0]["optimizer"]["batch_sise"] = 3
    with pytest.raises(ClaraError, match=r"config\.scp\.optimizer\.batch_sise.*did you mean batch_size\?"):
        from_json(changed)


def test_zero_steps_on_the_command_line_stand_for_none():
    given = config()
    given.scp.optimizer.steps, given.scp.optimizer.epochs = 0, 1.0
    (only,) = resolve(given).stages
    assert only.optimizer.steps is None and only.optimizer.epochs == 1.0


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("sede", 1, r"config\.sede: there is no such field; did you mean seed\?"),
        ("scp.optimizer.learning_rat", 1.0, r"scp\.optimizer\.learning_rat: there .*did you mean learning_rate\?"),
        ("scp.learning_rat", 1.0, r"config\.scp\.learning_rat: .*did you mean config\.scp\.optimizer\.learning_rate\?"),
        (
            "scp.topk",
            ConfigDict(dict(learning_rate=1.0)),
            r"scp\.topk\.learning_rate: .*mean config\.scp\.optimizer\.learning_rate\?",
        ),
        ("scp.eval_evry", 3, r"config\.scp\.eval_evry: .*did you mean config\.scp\.evaluation\.every\?"),
        ("scp.optimizer", 3, r"config\.scp\.optimizer is 3; it must be a section"),
        ("keeep", 3, r"config\.keeep: there is no such field; did you mean config\.saving\.keep\?"),
        ("saving", ConfigDict(dict(keep="3")), r"config\.saving\.keep is '3'; it must be a whole number, at least 1"),
        ("seed", "3", r"config\.seed is '3'; it must be a whole number"),
        ("clara.lora_rank", "3", r"config\.clara\.lora_rank is '3'; it must be a whole number"),
        ("clara.lora_alpha", "x", r"config\.clara\.lora_alpha is 'x'; it must be a number, or None"),
        ("clara.zzz", 1, r"config\.clara\.zzz: there is no such field; known are doc_max_length"),
        (
            "scp.optimizer.batch_size",
            "many",
            r"config\.scp\.optimizer\.batch_size is 'many'; it must be a whole number",
        ),
        ("scp.optimizer.batch_size", 1.5, r"config\.scp\.optimizer\.batch_size is 1\.5; it must be a whole number"),
        ("scp.optimizer.batch_size", True, r"config\.scp\.optimizer\.batch_size is True; it must be a whole number"),
        ("scp.optimizer.learning_rate", "1e-4", r"learning_rate is '1e-4'; it must be a number"),
        ("scp.data.train", "a.jsonl", r"data\.train is 'a\.jsonl'; it must be a tuple"),
        ("scp.optimizer.betas", (0.9,), r"betas is \(0\.9,\); it must be two numbers in \[0, 1\)"),
        ("scp.optimizer.betas", (0.9, "x"), r"betas\[1\] is 'x'; it must be a number"),
        ("scp.name", "instruct", None),
        ("clara", 3, r"config\.clara is 3; it must be a section"),
        ("instruct", 3, r"config\.instruct is 3; it must be a section"),
        (
            "instruct",
            ConfigDict(dict(data=dict(train=("a",)))),
            r"config\.instruct\.optimizer: give exactly one of steps and epochs",
        ),
        ("stages", ("spc",), r"there is no stage 'spc'; did you mean scp\?"),
        ("stages", ("instruct",), r"names instruct, but there is no section config\.instruct"),
        ("stages", (), r"config\.stages is \(\); name at least one"),
        ("scp.data.train", config_dict.required_placeholder(tuple), r"config: "),
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
        (dict(data=dict(train=())), "data.train is .*name at least one file"),
        (dict(optimizer=dict(steps=None)), "exactly one of steps and epochs, neither"),
        (dict(optimizer=dict(epochs=1.0)), "exactly one of steps and epochs, both"),
        (dict(optimizer=dict(steps=-1)), "optimizer.steps is -1; it must be a whole number, at least 1, or None"),
        (dict(optimizer=dict(batch_size=0)), "batch_size is 0"),
        (dict(optimizer=dict(batch_size=6, accumulate=4)), "accumulate is 4; it must divide batch_size 6"),
        (dict(optimizer=dict(learning_rate=0.0)), "learning_rate is 0.0; it must be a number, positive and finite"),
        (dict(optimizer=dict(learning_rate=float("nan"))), "learning_rate is nan"),
        (
            dict(optimizer=dict(schedule="cosin")),
            "schedule is 'cosin'; it must be one of cosine, constant, cosine_with_minimum",
        ),
        (dict(optimizer=dict(minimum_ratio=1.5)), "minimum_ratio"),
        (dict(optimizer=dict(warmup=1.5)), "warmup is 1.5; from 1 on it is a whole number"),
        (dict(optimizer=dict(warmup=-0.1)), "warmup"),
        (dict(optimizer=dict(betas=(0.9, 1.0))), "betas"),
        (dict(objective=dict(mse_weight=-1.0)), "mse_weight"),
        (dict(objective=dict(mse_reduction="max")), "mse_reduction is 'max'"),
        (dict(topk=dict(method="best")), "topk.method is 'best'; it must be one of iterative, gumbel, softsort"),
        (dict(topk=dict(score_normalization="max")), "score_normalization is 'max'; it must be one of none, standard"),
        (
            dict(topk=dict(temperature_schedule="line")),
            "temperature_schedule is 'line'; it must be one of constant, cosine",
        ),
        (
            dict(topk=dict(temperature_schedule="cosine")),
            "temperature_end is None; it goes with temperature_schedule=cosine",
        ),
        (dict(topk=dict(temperature_end=0.1)), "temperature_end is 0.1; it goes with temperature_schedule=cosine"),
        (
            dict(topk=dict(temperature_schedule="steps")),
            r"temperature_steps is \(\); they go with temperature_schedule=steps",
        ),
        (
            dict(topk=dict(temperature_schedule="steps", temperature_steps=(5, 3), temperature_values=(0.1, 0.2))),
            r"temperature_steps is \(5, 3\); they must rise",
        ),
        (
            dict(topk=dict(temperature_schedule="steps", temperature_steps=(5,), temperature_values=(0.1, 0.2))),
            r"temperature_values is \(0.1, 0.2\); give one for each of \(5,\)",
        ),
        (dict(topk=dict(learn_temperature=True)), "learn_temperature is True; scp ranks nothing"),
        (dict(objective=dict(marginal_weight=0.1)), "marginal_weight is 0.1; only end_to_end has that term"),
        (
            dict(evaluation=dict(gradients=True, data=("e",))),
            "evaluation.gradients is True; only end_to_end with memories has them",
        ),
        (
            dict(name="end_to_end", data=dict(documents="text"), evaluation=dict(gradients=True, data=("e",))),
            "evaluation.gradients is True; only end_to_end with memories",
        ),
        (dict(name="end_to_end", evaluation=dict(gradients=True)), "evaluation.gradients is True; data names no file"),
        (dict(data=dict(documents="texts")), "documents is 'texts'; it must be one of memory, text"),
        (dict(name="retrieval", data=dict(documents="text")), "documents is 'text'; retrieval ranks memories"),
        (
            dict(data=dict(documents="text", pack=512)),
            "pack is 512; with documents=text there are no documents' tokens to pack",
        ),
        (
            dict(name="instruct", data=dict(memories="m"), trains=("lora/generator",)),
            "memories is 'm'; only end_to_end and retrieval read memories that are kept",
        ),
        (
            dict(name="end_to_end", data=dict(documents="text", memories="m")),
            "memories is 'm'; with documents=text nothing reads them",
        ),
        (
            dict(data=dict(documents="text"), trains=("lora/generator", "lora/compressor")),
            r"trains is .*; with documents=text nothing reads lora/compressor; name lora/generator",
        ),
        (dict(data=dict(documents="text"), trains=("tokens/memory",)), "nothing reads tokens/memory"),
        (dict(data=dict(documents="text"), trains=("lora",)), "nothing reads lora;"),
        (
            dict(name="end_to_end", data=dict(documents="text"), topk=dict(learn_temperature=True)),
            "learn_temperature is True; end_to_end ranks nothing with documents=text",
        ),
        (
            dict(name="end_to_end", data=dict(documents="text"), objective=dict(marginal_weight=0.1)),
            "marginal_weight is 0.1; end_to_end ranks nothing with documents=text",
        ),
        (dict(name="end_to_end", topk=dict(k=5, candidates=4)), "topk.k is 5; it may not exceed candidates 4"),
        (dict(topk=dict(temperature=0.0)), "temperature"),
        (dict(evaluation=dict(every=5)), "evaluation.every is 5; data names no file"),
        (dict(trains=()), "trains"),
    ],
)
def test_stage_values(fields, message):
    with pytest.raises(ClaraError, match=message):
        stage(**fields)


@pytest.mark.parametrize("name", ["scp", "instruct", "end_to_end"])
def test_a_stage_with_documents_as_text_trains_the_generator_by_its_likelihood(name):
    text, memory = stage(name=name, data=dict(documents="text")), stage(name=name)
    assert text.subtrees == ("lora/generator",) and text.stage.weights(text.hyperparameters) == {"ce": 1.0}
    assert stage(name=name, data=dict(documents="text"), trains=("base", "lora/generator")).subtrees == (
        "base",
        "lora/generator",
    )
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
    assert OptimizerConfig(steps=7).total_steps(1000) == 7
    assert OptimizerConfig(epochs=1.0, batch_size=32).total_steps(100) == 4
    assert OptimizerConfig(epochs=0.5, batch_size=32).total_steps(128) == 2
    assert OptimizerConfig(epochs=0.001, batch_size=32).total_steps(10) == 1
    assert OptimizerConfig(warmup=0.03).warmup_steps(100) == 3
    assert OptimizerConfig(warmup=20).warmup_steps(100) == 20
    assert OptimizerConfig(warmup=20).warmup_steps(10) == 9
    assert OptimizerConfig(warmup=0.5).warmup_steps(1) == 0


def test_a_group_alone_names_its_field():
    with pytest.raises(ClaraError, match=r"^config\.optimizer\.accumulate is 3; it must divide batch_size 128$"):
        OptimizerConfig(accumulate=3)
    with pytest.raises(ClaraError, match=r"^config\.optimizer\.steps is '3'; it must be a whole number"):
        OptimizerConfig("3")


def groups(cls=RunConfig):
    """All sections, those of a stage among them."""
    found = {cls}
    for hint in (*typing.get_type_hints(cls).values(), *([StageConfig] if cls is RunConfig else ())):
        found |= groups(hint) if dataclasses.is_dataclass(hint) else set()
    return found


def test_groups_are_small_and_their_fields_described():
    assert len(groups()) == 16
    for cls in groups():
        fields = [name for name, hint in typing.get_type_hints(cls).items() if not dataclasses.is_dataclass(hint)]
        assert len(fields) <= 12, cls
        if cls is not ClaraConfig:
            assert all(cls.__pydantic_fields__[name].description for name in fields), cls


def test_every_field_can_be_given_by_a_flag():
    """A flag finds a field as an attribute of a ConfigDict, which has methods, too."""
    for cls in groups():
        assert not [field.name for field in dataclasses.fields(cls) if hasattr(ConfigDict, field.name)], cls


def flat(values, names):
    """A section as it was before there were groups."""
    paths = {path: old for old, path in names.items()}
    result = {}
    for name, value in values.items():
        inner = {f"{name}.{field}": item for field, item in value.items()} if isinstance(value, dict) else {}
        if inner.keys() & paths.keys():
            result |= {paths[path]: item for path, item in inner.items()}
        else:
            result[name] = value
    return result


def test_old_names_are_read_in_groups(capsys):
    """Of a ``config.json`` that an earlier version wrote, without a word, and of a config file, with a warning each."""
    fields = dict(optimizer=dict(steps=3), topk=dict(k=2, method="softsort"), evaluation=dict(data=("b.jsonl",)))
    groups = dict(saving=dict(keep=7), reporting=dict(profile=(1, 3)), synthetic=dict(records=dict(train=5)))
    run = RunConfig((stage(**fields),), ModelSection("smollm2"), **groups)
    written = json.loads(json.dumps(to_json(run)))
    for name, value in STAGE_TOPK_ADDED.items():  # since there are groups, and so without an old name
        assert written["stages"][0]["topk"].pop(name) == value
    old = flat(written, RUN_NAMES) | {"stages": [flat(one, STAGE_NAMES) for one in written["stages"]]}
    old["synthetic"] = flat(written["synthetic"], SYNTHETIC_NAMES)
    assert old["synthetic"].keys() == {*SYNTHETIC_NAMES, "seed"}
    assert not {"saving", "reporting"} & old.keys()
    assert old["stages"][0].keys() == {*STAGE_NAMES, "name", "trains", "reset"}
    assert from_json(old) == from_json(written) == run and capsys.readouterr().err == ""

    given = ConfigDict(dict(stages=("scp",), model=dict(base="smollm2"), keep=7, profile=(1, 3)))
    given.scp = ConfigDict(dict(train_data=("a.jsonl",), steps=3, top_k=2, topk_method="softsort"))
    given.synthetic = ConfigDict(dict(train_records=5))
    given.scp.evaluation = ConfigDict(dict(data=("b.jsonl",)))
    assert resolve(given) == run
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert any("config.synthetic.train_records is now config.synthetic.records.train;" in line for line in lines)
    assert "warning: config.scp.top_k is now config.scp.topk.k; the old name will go in the next version" in lines
    assert "warning: config.keep is now config.saving.keep; the old name will go in the next version" in lines
    given.scp.topk = ConfigDict(dict(k=3))
    with pytest.raises(ClaraError, match=r"config\.scp\.top_k and config\.scp\.topk\.k are one field; give the latter"):
        resolve(given)
