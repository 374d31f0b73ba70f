"""Weights and configurations of strangers: what they announce is checked before it is believed."""

import json
import struct
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import tests.tiny as tiny
from clara_jax.checkpoints import peft_folders
from clara_jax.errors import ClaraError
from clara_jax.formats.base import end_tokens, open_base
from clara_jax.formats.gguf_file import GGUFFile
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.model.config import ModelConfig
from clara_jax.strict_json import parse
from tests.exports import load_base

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8"}
DTYPES |= {"int32": "I32", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def write(path, tensors):
    """Safetensors of any dtype."""
    header, body = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": DTYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": place}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("base"))


def opened(base, mesh, change):
    """Loads the base with other tensors."""
    config = ModelConfig.from_hf(json.loads((base / "config.json").read_text()))
    path = base / "changed.safetensors"
    write(path, change(load_file(base / "model.safetensors")))
    return load_base(config, np.float32, mesh, open_tensors(path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_floating_dtypes_are_weights(base, mesh, dtype):
    name = "model.layers.1.mlp.up_proj.weight"

    def change(tensors):
        kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
        return tensors | {name: tensors[name].astype(kind)}

    if dtype in ("float64", "float32", "float16", "bfloat16"):
        opened(base, mesh, change)
    else:
        with pytest.raises(ClaraError, match=rf"'{name}' is of {dtype}"):
            opened(base, mesh, change)


ADDED = ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "lm_head.weight"]
ADDED += ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.weight_scale", "model.norm.bias", "x"]


@pytest.mark.parametrize("name", ADDED)
def test_tensors_that_nobody_reads_are_named(base, mesh, name):
    with pytest.raises(ClaraError, match=f"tensor '{name}' is one that config.json does not call for"):
        opened(base, mesh, lambda tensors: tensors | {name: tensors["model.embed_tokens.weight"] * 2})


def test_tensors_that_say_nothing_new(base, mesh):
    further = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    added = opened(
        base, mesh, lambda tensors: tensors | further | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    )
    jax.tree.map(np.testing.assert_array_equal, added, opened(base, mesh, lambda tensors: tensors))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_tensor_in_several_shards_is_read_where_the_index_says(tmp_path, copies):
    shards = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        held = {"a": np.full(2, i, np.float32), f"only{i}": np.ones(1, np.float32)}
        save_file(held, tmp_path / shard)
    for i, shard in enumerate(shards):
        names = {"a": shard, "only0": shards[0], "only1": shards[1]}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert open_tensors(tmp_path)["a"][0] == i
    del names["only1"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ClaraError, match='does not name the tensor "only1"'):
        open_tensors(tmp_path)


SIZES = ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim"]
GOOD = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 300}
GOOD |= {"num_attention_heads": 4, "rope_theta": 1e4, "rms_norm_eps": 1e-5}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*GOOD, "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "max_position_embeddings"]
FIELDS += ["hidden_act", "num_key_value_heads", "partial_rotary_factor", "original_max_position_embeddings", "head_dim"]


@settings(deadline=None)
@given(st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "phi3"]), st.sampled_from(FIELDS), JSON)
def test_any_value_of_a_field_is_read_or_refused(kind, field, value):
    try:
        ModelConfig.from_hf(GOOD | {"model_type": kind, field: value})
    except ClaraError as error:
        assert len(str(error)) < 1000


@settings(deadline=None)
@given(
    st.sampled_from(["default", "linear", "llama3", "longrope", "su", "yarn"]),
    st.dictionaries(
        st.sampled_from(
            "factor low_freq_factor high_freq_factor original_max_position_embeddings rope_theta short_factor "
            "long_factor attention_factor partial_rotary_factor".split()
        ),
        JSON,
    ),
)
def test_any_scaling_of_positions(kind, fields):
    for name in ("rope_scaling", "rope_parameters"):
        try:
            ModelConfig.from_hf(GOOD | {name: {"rope_type": kind, **fields}})
        except ClaraError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("size", [2**31, 10**15, 10**300])
def test_absurd_sizes_are_refused_before_memory_is_asked_for(field, size):
    with pytest.raises(ClaraError, match=f'"{field}" .* is more than any model has'):
        ModelConfig.from_hf(GOOD | {field: size})


@pytest.mark.parametrize("fields", [{"intermediate_size": 2**21}, {"num_hidden_layers": 4096}, {"hidden_size": 2**17}])
def test_sizes_that_the_files_do_not_have(base, mesh, fields):
    config = ModelConfig.from_hf(json.loads((base / "config.json").read_text()) | fields)
    with pytest.raises(ClaraError, match="is missing|has the shape"):
        load_base(config, np.float32, mesh, open_base(str(base)).tensors)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a": -' + "1" * 9999 + "}", "{", b"\xff"]
)
def test_any_json_is_one_kind_of_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse(text)


@pytest.mark.parametrize("name", ["doc_max_length", "max_length"])
def test_lengths_fit_the_positions(name):
    config = ModelConfig.from_hf(GOOD | {"max_position_embeddings": 256})
    lengths = {"doc_max_length": 64, "compress_rate": 4, "max_length": 128}
    ClaraModel(config, ClaraConfig(**lengths))
    with pytest.raises(
        ClaraError, match=f'{name} is 256.*"max_position_embeddings" 256' if name == "doc_max_length" else name
    ):
        ClaraModel(config, ClaraConfig(**lengths | {name: 256 if name == "doc_max_length" else 257}))
    with pytest.raises(ClaraError, match="at most"):
        ClaraConfig(doc_max_length=10**12)


@settings(deadline=None)
@given(st.one_of(JSON, st.lists(st.integers())))
def test_end_tokens(named):
    try:
        ids = end_tokens(named, "where")
    except ClaraError as error:
        assert str(error).startswith("where")
    else:
        assert all(type(i) is int and i >= 0 for i in ids)


PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"], "task_type": "X"}


@pytest.mark.parametrize(
    "fields, scale",
    [
        ({}, 2.0),
        ({"lora_alpha": 64.0}, 16.0),
        ({"use_rslora": True}, 4.0),
        ({"use_dora": False, "rank_pattern": {}, "modules_to_save": None, "layer_replication": []}, 2.0),
        ({"use_dora": True}, '"use_dora"'),
        ({"rank_pattern": {"q_proj": 2}}, '"rank_pattern"'),
        ({"alpha_pattern": {"q_proj": 2}}, '"alpha_pattern"'),
        ({"bias": "all"}, '"bias"'),
        ({"fan_in_fan_out": True}, '"fan_in_fan_out"'),
        ({"modules_to_save": ["lm_head"]}, '"modules_to_save"'),
        ({"lora_bias": True}, '"lora_bias"'),
        ({"init_lora_weights": "pissa"}, '"init_lora_weights"'),
        ({"trainable_token_indices": [1]}, '"trainable_token_indices"'),
        ({"peft_type": "LOHA"}, '"peft_type"'),
        ({"a_field_of_tomorrow": 1}, '"a_field_of_tomorrow"'),
        ({"r": 8}, '"r" 8 is not the rank'),
        ({"lora_alpha": "8"}, '"lora_alpha"'),
    ],
)
def test_adapter_config(tmp_path, fields, scale):
    if isinstance(scale, float):
        assert peft_folders._scale(tmp_path, PLAIN | fields, 4) == scale
    else:
        with pytest.raises(ClaraError, match=scale):
            peft_folders._scale(tmp_path, PLAIN | fields, 4)


def test_a_message_about_a_long_field_begins_with_the_file_and_ends_with_what_to_do(tmp_path):
    with pytest.raises(ClaraError, match=r"adapter.json: \"x\[ \[.* \.\.\. .*merge it into the base") as caught:
        peft_folders._scale(tmp_path / "adapter.json", PLAIN | {"x" + "[\n" * 5000: 1}, 4)
    assert len(str(caught.value)) <= 1600


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*PLAIN, "use_rslora", "use_dora", "x"]), JSON))
def test_any_adapter_config(fields):
    try:
        assert peft_folders._scale(peft_folders.Path("x"), PLAIN | fields, 4) > 0
    except ClaraError:
        pass


def kv(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + content


@pytest.mark.parametrize(
    "fields, tensors, body",
    [
        (2**60, 0, b""),
        (0, 2**60, b""),
        (1, 0, kv(b"a", 9, array(8, 2**60))),
        (1, 0, kv(b"a", 9, array(4, 2**62))),
        (1, 0, kv(b"a", 9, array(9, 2, array(9, 2, array(4, 0))))),
        (1, 0, kv(b"a", 8, struct.pack("<Q", 2**63))),
        (1, 0, kv(b"a", 77, b"")),
        (1, 0, kv(b"\xff\xfe", 4, b"1234")),
        (1, 0, struct.pack("<Q", 2**40) + b"a"),
        (0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<IQQQQIQ", 4, *[2**30] * 4, 0, 0)),
        (0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)),
    ],
)
def test_lying_counts_of_gguf_end_at_once(tmp_path, fields, tensors, body):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + body + bytes(64))
    start = time.process_time()
    with pytest.raises(ClaraError, match="truncated or damaged") as caught:
        GGUFFile(path)
    assert "\n" not in str(caught.value) and time.process_time() - start < 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"general.architecture", b"llama.block_count", b"split.count", b"tokenizer.ggml.tokens"]),
            st.sampled_from(
                [
                    (8, struct.pack("<Q", 5) + b"llama"),
                    (8, struct.pack("<Q", 2) + b"\xff\xfe"),
                    (4, b"\1\0\0\0"),
                    (6, b"\0\0\xc0\x7f"),
                    (7, b"\1"),
                    (9, array(4, 1, b"\1\0\0\0")),
                    (9, array(8, 1, struct.pack("<Q", 1) + b"\xff")),
                ]
            ),
        ),
        max_size=4,
        unique_by=lambda pair: pair[0],
    )
)
def test_fields_of_gguf_of_any_type(pairs):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        body = b"".join(kv(name, *value) for name, value in pairs)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body + bytes(64))
        with pytest.raises(ClaraError):
            GGUFFile(path).tokenizer()
