"""What other programs read: each format read back by readers that know nothing of the writer, and what is refused."""

import dataclasses
import json
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax import convert
from clara_jax.api import Clara
from clara_jax.checkpoints import exporting, opening, released
from clara_jax.errors import ClaraError
from clara_jax.formats import hugging_face
from clara_jax.formats.base import open_base
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.formats.torch_file import write_pth
from clara_jax.formats.torch_pickle import read_pth
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import flatten
from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import make_mesh
from tests import exports, tiny
from tests.locations import golden_folders

FOLDERS = golden_folders()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return exports.bundle(tiny.write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module", params=["untied", "fused", "one memory token"])
def other(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    match request.param:
        case "untied":
            return exports.bundle(tiny.write_base(folder, tie_word_embeddings=False))
        case "fused":
            return exports.bundle(exports.write_fused_base(folder))
    return exports.bundle(tiny.write_base(folder), dataclasses.replace(exports.SMALL, different_mem_tokens=False))


def test_a_model_comes_back_from_peft_folders_as_it_was(bundle, tmp_path):
    exporting.export_peft(bundle, tmp_path / "peft")
    same(bundle, opening.load(tmp_path / "peft", bundle.mesh))


def test_so_do_other_bases(other, tmp_path):
    exporting.export_peft(other, tmp_path / "peft")
    same(other, opening.load(tmp_path / "peft", other.mesh))
    exporting.export_released(other, tmp_path / "released")
    same(other, opening.load(tmp_path / "released", other.mesh, precision="float32"))


def test_a_memory_map_travels_with_peft_folders_and_is_refused_by_name_elsewhere(tmp_path):
    clara = dataclasses.replace(exports.SMALL, memory_map="affine", different_mem_tokens=False)
    mapped = exports.bundle(tiny.write_base(tmp_path / "base"), clara)
    vectors = {name: jax.numpy.arange(64.0) / (2 + i) for i, name in enumerate(mapped.params["tokens"]["map"])}
    tokens = mapped.params["tokens"] | {"map": vectors}
    mapped = dataclasses.replace(mapped, params={**mapped.params, "tokens": tokens})
    exporting.export_peft(mapped, tmp_path / "peft", dtype="float32")
    found = opening.load(tmp_path / "peft", mapped.mesh)
    same(mapped, found)
    np.testing.assert_array_equal(found.params["tokens"]["map"]["shift"], vectors["shift"])
    with pytest.raises(ClaraError, match='memory_map is "affine".*--format peft'):
        exporting.export_released(mapped, tmp_path / "released")
    runs = dataclasses.replace(mapped.model.clara, memory_map="state", memory_places="runs")
    placed = dataclasses.replace(mapped, model=dataclasses.replace(mapped.model, clara=runs))
    with pytest.raises(ClaraError, match='memory_places is "runs".*--format peft'):
        exporting.export_released(placed, tmp_path / "released")
    assert placed.fingerprint() != mapped.fingerprint()
    tensors = dict(open_tensors(tmp_path / "peft/embeddings.safetensors"))
    del tensors["memory_map.center"]
    save_file(tensors, tmp_path / "peft/embeddings.safetensors")
    with pytest.raises(ClaraError, match="the memory map's center is missing; it must be a vector of 64"):
        opening.load(tmp_path / "peft", mapped.mesh)


def test_a_model_comes_back_from_the_released_format_as_it_was(bundle, tmp_path):
    exporting.export_released(bundle, tmp_path / "released")
    loaded = opening.load(tmp_path / "released", bundle.mesh, precision="float32")
    same(bundle, loaded)
    config = json.loads((tmp_path / "released/config.json").read_text())
    assert config["training_stage"] == "stage2" and config["compr_rate"] == 8 and config["lora_r"] == 4
    assert loaded.history == ({"stage": "released stage2", "top_k": 5},)
    exporting.export_released(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == config


def same(wanted, found):
    ours, theirs = flatten(wanted.params), flatten(found.params)
    assert set(ours) == set(theirs)
    for name, leaf in ours.items():
        np.testing.assert_array_equal(np.asarray(theirs[name]), np.asarray(leaf), err_msg=name)
    assert found.model.config == wanted.model.config and found.tokenizer.special_ids == wanted.tokenizer.special_ids
    # The released format says nothing of dropout, and its reader has a rule for tokenizers without bos.
    free = {"lora_dropout": 0.0, "missing_bos": "omit"}
    assert dataclasses.replace(found.model.clara, **free) == dataclasses.replace(wanted.model.clara, **free)
    assert set(found.trained) == set(wanted.trained)


@pytest.mark.skipif(not FOLDERS, reason="no golden files: set CLARA_GOLDEN_DIR")
@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: folder.name if folder else "none")
def test_golden_checkpoint_is_written_as_the_released_code_wrote_it(folder, tmp_path):
    source = folder / "clara_checkpoint"
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    exporting.export_released(opening.load(source, mesh, precision="float32"), tmp_path / "out")
    for file in ("adapters.pth", "decoder_first_last_layers.pth"):
        wanted, found = flatten(read_pth(source / file)), flatten(read_pth(tmp_path / "out" / file))
        assert set(found) == set(wanted)
        for name in wanted:
            assert found[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    wanted = json.loads((source / "config.json").read_text())
    found = json.loads((tmp_path / "out/config.json").read_text())
    free = {"decoder_model_name", "transformers_version", "attn_implementation"}
    assert {k: v for k, v in found.items() if k not in free} == {k: v for k, v in wanted.items() if k not in free}


def test_a_merged_model_holds_the_sum(bundle, tmp_path):
    exporting.export_merged(bundle, tmp_path / "merged", "compressor")
    before, after = open_base(bundle.base["name"]).tensors, open_base(str(tmp_path / "merged")).tensors
    assert set(before) == set(after)
    exporting.export_peft(bundle, tmp_path / "peft")
    lora = open_tensors(tmp_path / "peft/compressor/adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    a, b = (np.asarray(lora[f"base_model.model.{name}.lora_{side}.weight"], np.float64) for side in "AB")
    np.testing.assert_allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * b @ a, atol=1e-5)
    table = after["model.embed_tokens.weight"]
    assert len(table) == bundle.tokenizer.total_vocab
    np.testing.assert_array_equal(table[-3:], np.asarray(bundle.params["tokens"]["markers"]))
    np.testing.assert_array_equal(table[list(bundle.tokenizer.memory_ids)], bundle.params["tokens"]["memory"])


def test_a_merged_model_is_a_base_with_a_tokenizer_of_its_own(bundle, tmp_path):
    exporting.export_merged(bundle, tmp_path / "merged", dtype="bfloat16")
    opened = open_base(str(tmp_path / "merged"))
    config = ModelConfig.from_hf(opened.config)
    assert config == dataclasses.replace(bundle.model.config, vocab_size=bundle.tokenizer.total_vocab)
    base = exports.load_base(config, "bfloat16", bundle.mesh, opened.tensors)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(base)} == {"bfloat16"}
    tokenizer = opened.load_tokenizer()
    assert tokenizer.convert_tokens_to_ids("<SEP>") == bundle.tokenizer.special_ids["<SEP>"]
    generation = json.loads((tmp_path / "merged/generation_config.json").read_text())
    assert generation["eos_token_id"] == list(bundle.end_ids)


def test_half_the_bytes_hold_the_nearest_values(bundle, tmp_path):
    exporting.export_peft(bundle, tmp_path / "whole")
    exporting.export_peft(bundle, tmp_path / "half", dtype="bfloat16")
    for name in ("generator/adapter_model.safetensors", "embeddings.safetensors"):
        whole, half = open_tensors(tmp_path / "whole" / name), open_tensors(tmp_path / "half" / name)
        for tensor in whole:
            np.testing.assert_array_equal(half[tensor], whole[tensor].astype(half[tensor].dtype))


def test_answers_are_those_of_the_model(bundle, tmp_path):
    documents = [[tiny.document(i) for i in range(3)]]
    wanted = Clara(bundle).answer(["Where was Ada born?"], documents, k=2, max_new_tokens=6)[0]
    exporting.export_peft(bundle, tmp_path / "peft")
    found = Clara.load(tmp_path / "peft").answer(["Where was Ada born?"], documents, k=2, max_new_tokens=6)[0]
    assert found.tokens == wanted.tokens
    assert [(one.id, round(one.score, 5)) for one in found.sources] == [
        (one.id, round(one.score, 5)) for one in wanted.sources
    ]


def test_a_base_from_scratch_travels_along(tmp_path):
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    tiny.write_base(tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    made = opening.from_scratch(config, tiny.tokenizer(), exports.SMALL, mesh, "float32")
    made = dataclasses.replace(made, trained=("base", *exports.TRAINED), history=({"stage": "scp"},))
    for name, export in (("peft", exporting.export_peft), ("released", exporting.export_released)):
        export(made, tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"moved {name}")
        found = opening.load(tmp_path / f"moved {name}", mesh, precision="float32")
        for path, leaf in flatten(made.params).items():
            np.testing.assert_array_equal(np.asarray(flatten(found.params)[path]), np.asarray(leaf), err_msg=path)


def released_config(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_base_that_is_written_along_is_named_from_anywhere_and_goes_where_the_checkpoint_goes(bundle, tmp_path):
    whole = dataclasses.replace(bundle, base_overrides=("base",))
    for name, export in (("peft", exporting.export_peft), ("released", exporting.export_released)):
        export(whole, tmp_path / name)
    assert released_config(tmp_path / "released")["decoder_model_name"] == str(tmp_path / "released/base")
    named = json.loads((tmp_path / "peft/generator/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "peft/base")
    # Another model at the place that is named is not taken for it.
    (tmp_path / "released").rename(tmp_path / "moved")
    tiny.write_base(tmp_path / "released/base", seed=9)
    same(whole, opening.load(tmp_path / "moved", bundle.mesh, precision="float32"))


def test_k_is_the_runs_in_the_released_format_and_back(bundle, tmp_path):
    history = ({"stage": "instruct", "top_k": 2}, {"stage": "end_to_end", "top_k": 3})
    exporting.export_released(dataclasses.replace(bundle, history=history), tmp_path / "out")
    assert released_config(tmp_path / "out")["generation_top_k"] == 3
    assert opening.load(tmp_path / "out", bundle.mesh).top_k == 3
    for k in (0, True, "5", 2**40):
        (tmp_path / "out/config.json").write_text(
            json.dumps(released_config(tmp_path / "out") | {"generation_top_k": k})
        )
        with pytest.raises(ClaraError, match='config.json: "generation_top_k" .* is not a positive whole number'):
            opening.load(tmp_path / "out", bundle.mesh)


def test_adapters_in_the_released_format_carry_tied_tables_by_both_names(bundle, tmp_path):
    exporting.export_released(bundle, tmp_path / "out")
    assert list(read_pth(tmp_path / "out/decoder_first_last_layers.pth")) == ["model.embed_tokens.weight"]
    for role, state in read_pth(tmp_path / "out/adapters.pth").items():
        assert [name for name in state if "lora" not in name] == ["model.embed_tokens.weight", "lm_head.weight"], role
        assert np.shares_memory(state["model.embed_tokens.weight"], state["lm_head.weight"])


def test_tensors_are_split_into_shards(tmp_path):
    tensors = {f"t{i}": np.full((4, 8), i, np.float32) for i in range(5)}
    hugging_face.write_tensors(tmp_path, tensors.items(), shard_bytes=300)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    found = open_tensors(tmp_path)
    assert {name: found[name].tolist() for name in found} == {name: array.tolist() for name, array in tensors.items()}


def test_files_of_torch_hold_each_array_once(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_pth(tmp_path / "a.pth", {"one": {"t": table, "empty": np.zeros((0, 3), np.float32)}, "two": {"t": table}})
    found = read_pth(tmp_path / "a.pth")
    np.testing.assert_array_equal(found["one"]["t"], table)
    assert np.shares_memory(found["one"]["t"], found["two"]["t"]) and found["one"]["empty"].shape == (0, 3)


def test_files_of_torch_do_not_tell_when_they_were_written(tmp_path, monkeypatch):
    content = {"one": {"t": np.arange(12, dtype=np.float32)}}
    write_pth(tmp_path / "a.pth", content)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_pth(tmp_path / "b.pth", content)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize(
    "change, why",
    [
        ({"lora_alpha": 3.0}, "lora_alpha is 3.*twice the rank, 8.*--format peft"),
        ({"lora_alpha": 8.0}, None),
    ],
)
def test_what_the_released_format_cannot_say_is_refused(bundle, tmp_path, change, why):
    clara = dataclasses.replace(bundle.model.clara, **change)
    changed = dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, clara=clara))
    if why is None:
        exporting.export_released(changed, tmp_path / "out")
        return
    with pytest.raises(ClaraError, match=why):
        exporting.export_released(changed, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_query_reasoner_that_was_never_trained_is_left_out_of_the_released_format(bundle, tmp_path):
    untrained = dataclasses.replace(bundle, trained=("lora/compressor", "lora/generator", "tokens/memory"))
    exporting.export_released(untrained, tmp_path / "out")
    assert set(read_pth(tmp_path / "out/adapters.pth")) == {"encoder_adapter", "decoder_adapter"}


def test_what_is_there_is_left_alone(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    for export in (exporting.export_peft, exporting.export_released, exporting.export_merged):
        with pytest.raises(ClaraError, match="out: is there already"):
            export(bundle, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize("export", [exporting.export_peft, exporting.export_merged])
def test_a_disk_that_lies_is_found_out_and_nothing_stays(bundle, tmp_path, monkeypatch, export):
    def lie(tensors, path, metadata):
        name = next(name for name in tensors if "v_proj" in name or "embed" in name)
        changed = tensors[name].copy()
        changed.reshape(-1)[5] += 1
        keep(tensors | {name: changed}, path, metadata)

    keep = hugging_face.save_file
    for module in (hugging_face, sys.modules["clara_jax.checkpoints.peft_folders"]):
        monkeypatch.setattr(module, "save_file", lie)
    with pytest.raises(ClaraError, match="is not what was written"):
        export(bundle, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(bundle, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(released, "tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        exporting.export_released(bundle, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    convert.main()


def test_the_command(bundle, tmp_path, monkeypatch, capsys):
    bundle.save(tmp_path / "run", "end_to_end")
    for form in exporting.FORMATS:
        run(monkeypatch, "export", "--checkpoint", tmp_path / "run", "--format", form, "--output", tmp_path / form)
        assert f"{form}, " in capsys.readouterr().out
    run(monkeypatch, "import", "--source", tmp_path / "peft", "--output", tmp_path / "back")
    same(bundle, opening.load(tmp_path / "back", bundle.mesh))


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["--format", "peft", "--role", "generator"], "--role: peft holds all roles"),
        (["--format", "merged", "--base-name", "x"], "--base-name: a merged model needs no base"),
        (["--format", "merged"], "no such directory"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, why):
    with pytest.raises(ClaraError, match=why):
        run(monkeypatch, "export", "--checkpoint", tmp_path / "none", "--output", tmp_path / "out", *arguments)


def test_a_damaged_export_is_refused(bundle, tmp_path):
    exporting.export_peft(bundle, tmp_path / "peft")
    (tmp_path / "peft/export.json").write_text('{"kind": "clara_jax PEFT export"}')
    with pytest.raises(ClaraError, match="export.json: .*is missing"):
        opening.load(tmp_path / "peft", bundle.mesh)


def test_a_model_without_bos_is_not_exported_to_the_released_format(bundle, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    added = opening._added_tokens(tokenizer, ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4))
    with pytest.raises(ClaraError, match="no bos token.*--format peft"):
        exporting.export_released(dataclasses.replace(bundle, tokenizer=added), tmp_path / "out")


def test_what_stands_for_a_missing_bos_in_the_released_format(tmp_path, mesh, capsys):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    tokenizer.add_special_tokens({"extra_special_tokens": ["<s>"]})
    tiny.write_base(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny").rename(tmp_path / "Qwen-tiny")
    first = exports.bundle(tmp_path / "Qwen-tiny", dataclasses.replace(exports.SMALL, missing_bos="first_special"))
    assert first.tokenizer.lacks_bos and first.tokenizer.bos_id == tokenizer.convert_tokens_to_ids("<s>")
    exporting.export_released(first, tmp_path / "out")
    found = opening.load(tmp_path / "out", mesh, precision="float32")
    same(first, found)
    assert found.tokenizer.bos_id == first.tokenizer.bos_id and "warning" not in capsys.readouterr().err
    # The released code goes by the base's name.
    exporting.export_released(first, tmp_path / "other", base_name="models/tiny")
    assert "models/tiny has no bos token, for which the released code finds another where" in capsys.readouterr().err
    exporting.export_released(dataclasses.replace(first, base_overrides=("base",)), tmp_path / "whole")
    assert released_config(tmp_path / "whole")["decoder_model_name"] == str(tmp_path / "whole/qwen_base")
    assert json.loads((tmp_path / "whole/qwen_base/tokenizer_config.json").read_text())["additional_special_tokens"]
    # A run that has the first memory token there is not what the released code would make of it.
    old = exports.bundle(tmp_path / "Qwen-tiny", dataclasses.replace(exports.SMALL, missing_bos="memory_token"))
    with pytest.raises(ClaraError, match='trained with missing_bos "memory_token"; export --format peft'):
        exporting.export_released(old, tmp_path / "old")
