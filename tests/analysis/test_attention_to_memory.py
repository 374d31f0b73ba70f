"""Attention probabilities against a NumPy model that knows nothing of ours; sums, ranks, and a hook that costs
nothing."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from clara_jax.analysis import attention_to_memory as looking
from clara_jax.input_pipeline import prompts
from clara_jax.model.sharding import put_batch
from tests.analysis.conftest import make_bundle

NAN = float("nan")
QUESTIONS = ["Where was Ada number 0 born?", "Who is a painter, and where does Mika number 2 work?", "Who?"]


def naive(bundle, x, window=None):
    """Attention probabilities of the generator, float64 [L, H, T, T], layer by layer and head by head; x [T, E]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), bundle.params)
    base, lora = params["base"]["layers"], params["lora"]["generator"]["layers"]
    config, scale = bundle.model.config, bundle.model.clara.lora_scale
    length, channels = len(x), config.head_dim
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, channels, 2) / channels)
    at = np.arange(length)
    hidden = (at[None] > at[:, None]) | (at[:, None] - at[None] >= (window or length))

    def norm(x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight

    def linear(x, layer, part, name):
        kernel, a = base[part][name]["kernel"][name][layer], lora[part][name]["a"][layer]
        b = lora[part][name]["b"][name][layer]
        ins = int(np.prod(a.shape[:-1]))
        whole = kernel.reshape(ins, -1) + scale * a.reshape(ins, -1) @ b.reshape(b.shape[0], -1)
        return x @ whole

    def turn(x):
        first, second = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    found = []
    for layer in range(config.layers):
        y = norm(x, base["attention_norm"]["scale"][layer])
        q, k, v = (linear(y, layer, "attention", name).reshape(length, -1, channels) for name in "qkv")
        heads, mixed = [], []
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            scores = turn(q[:, head]) @ turn(k[:, group]).T / channels**0.5
            weights = np.exp(np.where(hidden, -np.inf, scores))
            weights /= weights.sum(1, keepdims=True)
            heads.append(weights)
            mixed.append(weights @ v[:, group])
        found.append(heads)
        x = x + linear(np.concatenate(mixed, axis=1), layer, "attention", "o")
        y = norm(x, base["mlp_norm"]["scale"][layer])
        gate = linear(y, layer, "mlp", "gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, layer, "mlp", "up"), layer, "mlp", "down")
    return np.array(found)


def make_prompts(bundle, memories):
    """ids, mask, memory index [B, T] and memories [B, K, M, E], padded on the right."""
    asked = [prompts.question(q, len(memory)) for q, memory in zip(QUESTIONS, memories, strict=True)]
    encoded = bundle.tokenizer.encode_prompts(asked)
    length = max(len(one.ids) for one in encoded) + 3
    ids, index = np.zeros((len(asked), length), np.int32), np.full((len(asked), length), -1, np.int32)
    vectors = np.zeros((len(asked), max(map(len, memories)), *memories[0].shape[1:]), np.float32)
    for row, (one, memory) in enumerate(zip(encoded, memories, strict=True)):
        ids[row, : len(one.ids)], index[row, : len(one.ids)] = one.ids, one.memory_index
        vectors[row, : len(memory)] = memory
    lengths = np.array([len(one.ids) for one in encoded])
    return ids, np.arange(length) < lengths[:, None], index, vectors


def make_memories(bundle, rng):
    shape = bundle.model.clara.memory_tokens, bundle.model.config.embed_dim
    return [rng.normal(size=(count, *shape)).astype(np.float32) for count in (3, 1, 2)]


def embeddings(bundle, ids, index, vectors):
    """Of one prompt [T, E], from the tables."""
    tokens = bundle.params["tokens"]
    table = np.concatenate([bundle.params["base"]["embed"]["table"][: bundle.model.config.vocab_size]])
    table = np.concatenate([table, tokens["memory"], tokens["markers"]])
    flat = vectors.reshape(-1, vectors.shape[-1])
    return np.where((index >= 0)[:, None], flat[np.maximum(index, 0)], table[ids])


@pytest.mark.parametrize("window", [None, 9])
def test_probabilities_are_those_of_a_naive_model(window, tmp_path, mesh, clara):
    bundle = clara.bundle
    if window:
        bundle = make_bundle(tmp_path / "base", mesh, model_type="mistral", sliding_window=window)
        assert bundle.model.config.sliding_window == window
    arrays = make_prompts(bundle, make_memories(bundle, np.random.default_rng(0)))
    with jax.set_mesh(mesh):
        found = np.asarray(looking.last_token_attention(bundle.model, bundle.params, *put_batch(arrays, mesh)))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    for row, (ids, mask, index, vectors) in enumerate(zip(*arrays, strict=True)):
        length = mask.sum()
        x = embeddings(bundle, ids[:length], index[:length], vectors)
        expected = naive(bundle, x.astype(np.float64), window)[:, :, -1]
        np.testing.assert_allclose(found[:, row, :, :length], expected, atol=2e-5)
        assert (found[:, row, :, length:] == 0).all()
        assert expected.max() > 5 / length, "an even attention would prove little"


def test_eight_devices_equal_one(tmp_path, mesh42, clara):
    bundle = make_bundle(tmp_path / "base", mesh42)
    memories = make_memories(bundle, np.random.default_rng(1))
    one = looking.attention_shares(clara.bundle, QUESTIONS, memories, 4)
    eight = looking.attention_shares(bundle, QUESTIONS, memories, 4)
    np.testing.assert_allclose(eight.documents, one.documents, atol=1e-5)
    np.testing.assert_allclose(eight.first, one.first, atol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
def test_the_hook_is_in_no_other_program(keep, clara, monkeypatch):
    model, params, mesh = clara.bundle.model, clara.bundle.params, clara.bundle.mesh
    x, mask = put_batch((np.zeros((2, 8, 64), np.float32), np.ones((2, 8), bool)), mesh)

    def lowered():
        def loss(lora, x):
            states, kept = model.forward({**params, "lora": {"generator": lora}}, "generator", x, mask, return_kv=keep)
            return states.sum(), kept

        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(loss, has_aux=True)).lower(params["lora"]["generator"], x).as_text()

    with_hook = lowered()
    monkeypatch.setattr(nn.Module, "sow", lambda *a, **k: pytest.fail("replaced below"))
    with pytest.raises(pytest.fail.Exception):
        lowered()  # it is there
    monkeypatch.setattr(nn.Module, "sow", lambda *a, **k: False)
    assert lowered() == with_hook


def test_shares_of_a_batch(clara):
    """Three prompts in batches of two: each as it is alone, and what goes where adds up to all."""
    bundle = clara.bundle
    memories = make_memories(bundle, np.random.default_rng(2))
    shares = looking.attention_shares(bundle, QUESTIONS, memories, 2)
    assert shares.documents.shape == (3, 2, 3) and shares.first.shape == (3, 2)
    np.testing.assert_array_equal(
        np.isnan(shares.documents[:, 0]), [[False] * 3, [False, True, True], [False] * 2 + [True]]
    )
    alone = looking.attention_shares(bundle, QUESTIONS[1:2], memories[1:2], 1)
    np.testing.assert_allclose(alone.documents[0, :, 0], shares.documents[1, :, 0], atol=1e-5)
    ids, mask, index, vectors = make_prompts(bundle, memories)
    with jax.set_mesh(bundle.mesh):
        weights = looking.last_token_attention(
            bundle.model, bundle.params, *put_batch((ids, mask, index, vectors), bundle.mesh)
        )
    weights = np.asarray(weights).mean(2)
    memory = np.stack([weights[:, row, index[row] >= 0].sum(-1) for row in range(3)])
    np.testing.assert_allclose(shares.memory, memory, atol=1e-5)
    np.testing.assert_allclose(shares.first, weights[:, :, 0].T, atol=1e-5)
    np.testing.assert_allclose(shares.places, (index >= 0).sum(1) / mask.sum(1))


def test_ranks_are_told_apart_from_being_right():
    """Every first document gets 0.6, right or not; at the second rank a right one gets twice as much."""
    onto = np.array([[0.6, 0.1, 0.1], [0.6, 0.2, NAN], [0.6, 0.1, NAN], [0.6, 0.2, NAN]])
    gold = np.array([[True, False, False], [False, True, False], [True, False, False], [False, True, False]])
    right, other = looking.by_rank(onto, gold)
    np.testing.assert_allclose(right, [0.6, 0.2, NAN])
    np.testing.assert_allclose(other, [0.6, 0.1, 0.1])
    np.testing.assert_allclose(looking.at_equal_rank(onto, gold), [0.4, 0.35])
    assert np.isnan(looking.at_equal_rank(onto[:1], gold[:1])).all()


def test_the_section_names_its_controls():
    shares = looking.Shares(np.full((4, 3, 2), 0.2), np.full((4, 3), 0.5), np.full(4, 0.25))
    others = dataclasses.replace(shares, documents=np.full((4, 3, 2), 0.1))
    gold = np.array([[True, False], [False, True]] * 2)
    found = looking.attention_section(shares, others, gold, 0)
    assert "40.0 % of it goes onto memories, which are 25.0 % of the tokens" in found["text"]
    assert "20.0 % against 40.0 %" in found["text"] and "At equal places" in found["text"]
    assert found["table"]["rows"][2] == [3, 0.4, 0.5, 0.1, 0.2, 0.2, 0.2]
    json.dumps(found, allow_nan=False)
    without = looking.attention_section(shares, None, np.zeros((4, 2), bool), 0)
    assert without["table"]["rows"][0] == [1, 0.4, 0.5, 0.1, None, None] and "control" not in without["text"]
    assert "cannot be compared" in without["text"]
