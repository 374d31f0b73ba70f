"""Configurations of real models are read; what is not supported is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import declare, flatten
from clara_jax.model.config import ARCHITECTURES, ModelConfig
from clara_jax.model.declare import abstract, declare_base
from clara_jax.model.rope import inverse_frequencies
from clara_jax.model.sharding import make_mesh

MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
PHI4_MINI = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "sliding_window": 262144,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_mistral_7b_has_the_papers_parameter_counts():
    tree = declare(ModelConfig.from_hf(MISTRAL_7B), ClaraConfig())
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flatten(tree).items()}
    assert sum(size for path, size in sizes.items() if path.startswith("base/")) == 7_241_732_096
    for role in ("compressor", "query_reasoner", "generator"):
        assert sum(size for path, size in sizes.items() if path.startswith(f"lora/{role}/")) == 41_943_040


def test_mistral_7b_is_sharded_over_eight_devices(mesh42):
    shapes = flatten(abstract(declare(ModelConfig.from_hf(MISTRAL_7B), ClaraConfig()), mesh42))
    spread = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in shapes.items()}
    assert spread["base/layers/attention/q/kernel/q"] == (32, 1024, 16, 128)
    assert spread["base/layers/mlp/down/kernel/down"] == (32, 7168, 1024)
    assert spread["base/embed/table"] == (16000, 1024)
    assert spread["lora/generator/layers/attention/o/a"] == (32, 16, 128, 16)


def test_phi4_mini():
    config = ModelConfig.from_hf(PHI4_MINI)
    assert config.fused and config.tied and config.head_dim == 128 and config.rope.channels == 96
    assert config.rope.kind == "longrope" and config.rope.attention_scale == pytest.approx(
        np.sqrt(1 + np.log(32) / np.log(4096))
    )
    np.testing.assert_allclose(
        inverse_frequencies(config.rope), 2 * inverse_frequencies(config.rope, long=True), rtol=1e-6
    )


def test_llama3_stretches_long_waves_only():
    plain = ModelConfig.from_hf({**MISTRAL_7B, "model_type": "llama", "rope_theta": 5e5})
    scaled = ModelConfig.from_hf(
        {**MISTRAL_7B, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING}
    )
    ratio = inverse_frequencies(plain.rope) / inverse_frequencies(scaled.rope)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8) and np.all(np.diff(ratio) >= -1e-6)


def test_new_spelling_of_rope():
    old = ModelConfig.from_hf({**MISTRAL_7B, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING})
    rest = {key: value for key, value in MISTRAL_7B.items() if key != "rope_theta"}
    new = ModelConfig.from_hf({**rest, "model_type": "llama", "rope_parameters": {**LLAMA3_SCALING, "rope_theta": 5e5}})
    assert old == new


@pytest.mark.parametrize(
    "change,word",
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"use_sliding_window": "false"}, "neither true nor false"),
        ({"tie_word_embeddings": "false"}, "neither true nor false"),
        ({"attention_bias": "no"}, "neither true nor false"),
        ({"mlp_bias": [0]}, "neither true nor false"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, word):
    with pytest.raises(ClaraError, match=word):
        ModelConfig.from_hf({**MISTRAL_7B, **change}, "dir/config.json")


def test_a_mesh_that_does_not_divide_is_refused():
    tree = declare(ModelConfig.from_hf({**MISTRAL_7B, "intermediate_size": 14335}), ClaraConfig())
    with pytest.raises(ClaraError, match="14335"):
        abstract(tree, make_mesh(4, 2))
    with pytest.raises(ClaraError, match="8 devices"):
        make_mesh(3, 2)


def test_compress_rate_must_divide():
    with pytest.raises(ClaraError, match="compress_rate"):
        ClaraConfig(compress_rate=24)


def test_base_is_bfloat16_and_adapters_float32():
    leaves = flatten(declare(ModelConfig.from_hf(MISTRAL_7B), ClaraConfig()))
    assert {leaf.dtype for path, leaf in leaves.items() if path.startswith("base/")} == {jnp.bfloat16}
    assert {leaf.dtype for path, leaf in leaves.items() if not path.startswith("base/")} == {jnp.float32}
    assert jax.device_count() == 8


COMMON = {  # fields of all of these files, some for the reader to ignore
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "quantization_config": None,
    "transformers_version": "4.45.0",
}
LLAMA31_8B = COMMON | {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_SCALING,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "pretraining_tp": 1,
    "eos_token_id": [128001, 128008, 128009],
}
QWEN25_7B = COMMON | {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_window_layers": 28,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
QWEN3_8B = COMMON | {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_window_layers": 36,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
}
PHI3_MINI_4K = COMMON | {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
SMOLLM2_135M = COMMON | {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "is_llama_config": True,
    "rope_interleaved": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "config, parameters, window",
    [
        pytest.param(COMMON | MISTRAL_7B, 7_241_732_096, None, id="Mistral-7B-Instruct-v0.2"),
        pytest.param(LLAMA31_8B, 8_030_261_248, None, id="Llama-3.1-8B-Instruct"),
        pytest.param(QWEN25_7B, 7_615_616_512, None, id="Qwen2.5-7B-Instruct"),
        pytest.param(QWEN3_8B, 8_190_735_360, None, id="Qwen3-8B"),
        pytest.param(COMMON | PHI4_MINI, 3_836_021_760, 262144, id="Phi-4-mini-instruct"),
        pytest.param(PHI3_MINI_4K, 3_821_079_552, 2047, id="Phi-3-mini-4k-instruct"),
        pytest.param(SMOLLM2_135M, 134_515_008, None, id="SmolLM2-135M-Instruct"),
    ],
)
def test_real_models_have_their_published_sizes(config, parameters, window):
    read = ModelConfig.from_hf(config)
    assert sum(int(np.prod(leaf.shape)) for leaf in flatten(declare_base(read)).values()) == parameters
    assert read.sliding_window == window and read.max_positions == config["max_position_embeddings"]
    assert read.rope.theta == config["rope_theta"]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("change", [{}, {"head_dim": 48}, {"num_key_value_heads": 16}, {"tie_word_embeddings": True}])
def test_absent_fields_mean_what_transformers_takes_for_them(model_type, change):
    short = {"hidden_size": 2048, "num_attention_heads": 64, "intermediate_size": 96, "num_hidden_layers": 2} | change
    short |= {"vocab_size": 160}
    full = transformers.AutoConfig.for_model(model_type, **short).to_dict()
    assert set(full) > {"rope_parameters", "rms_norm_eps", "max_position_embeddings", "num_key_value_heads"}
    assert ModelConfig.from_hf({"model_type": model_type, **short}) == ModelConfig.from_hf(full)


def test_longrope_numbers_go_before_those_derived_from_positions():
    def rope(change=(), scaling=()):
        config = {**PHI4_MINI, **dict(change), "rope_scaling": {**PHI4_MINI["rope_scaling"], **dict(scaling)}}
        return ModelConfig.from_hf(config).rope

    assert rope(scaling={"factor": 4.0}).attention_scale == pytest.approx(np.sqrt(1 + np.log(4) / np.log(4096)))
    assert rope(scaling={"factor": 4.0, "attention_factor": 1.25}).attention_scale == 1.25
    assert rope({"max_position_embeddings": 4096}).attention_scale == 1
    # Transformers takes the field beside the scaling, where both have it.
    assert rope(scaling={"original_max_position_embeddings": 512}).original_positions == 4096


def test_layer_types_do_not_decide_where_the_window_does():
    kinds = {"layer_types": ["full_attention"] * 32, "sliding_window": 4096}
    assert ModelConfig.from_hf({**MISTRAL_7B, **kinds}).sliding_window == 4096
    assert ModelConfig.from_hf({**QWEN25_7B, "layer_types": ["full_attention"] * 28}).sliding_window is None


@pytest.mark.parametrize(
    "config, change, word",
    [
        (QWEN25_7B, {"layer_types": ["sliding_attention"] * 28}, "layer_types"),
        (LLAMA31_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (QWEN3_8B, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
        (LLAMA31_8B, {"rope_scaling": {**LLAMA3_SCALING, "factor": "eight"}}, "factor.*eight"),
        (LLAMA31_8B, {"rope_theta": "big"}, "rope_theta"),
        (PHI4_MINI, {"rope_scaling": {**PHI4_MINI["rope_scaling"], "long_factor": [2.0] * 47}}, "48.*long_factor"),
        (PHI4_MINI, {"rope_scaling": {**PHI4_MINI["rope_scaling"], "short_factor": None}}, "48.*short_factor"),
    ],
)
def test_what_would_change_the_numbers_is_refused(config, change, word):
    with pytest.raises(ClaraError, match=word):
        ModelConfig.from_hf({**config, **change})
