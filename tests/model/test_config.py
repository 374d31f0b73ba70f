"""Configurations of real models are read; what is not supported is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import declare, flatten
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract
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
    assert config.fused and config.tied and config.head_channels == 128 and config.rope.channels == 96
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
