"""Memories on a scaffold: the equation, its runs of tokens, rows that hold several texts, and where the map starts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.input_pipeline.batches import Sequences, memory_at_end
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.compressor import encode
from clara_jax.method.memory_map import calibrated_map, map_memory, pool_runs
from clara_jax.method.parameters import declare
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import initialise
from clara_jax.model.sharding import put_batch

SIZES = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 58,
    "tie_word_embeddings": True,
}
M = 3


def make_model(memory_map="affine", memory_places="end"):
    clara = ClaraConfig(doc_max_length=12, compress_rate=4, lora_rank=4, different_mem_tokens=False, lora_dropout=0.0)
    clara = dataclasses.replace(clara, memory_map=memory_map, memory_places=memory_places)
    return ClaraModel(ModelConfig.from_hf(SIZES), clara, "float32")


@functools.cache
def make_params(model, mesh):
    return initialise(declare(model.config, model.clara, jnp.float32), jax.random.key(0), mesh)


def texts(lengths, width):
    """Texts of these lengths, padded on the left, each followed by the memory tokens."""
    rng = np.random.default_rng(5)
    ids = np.full((len(lengths), width + M), SIZES["vocab_size"], np.int32)
    ids[:, :width] = rng.integers(0, SIZES["vocab_size"], (len(lengths), width))
    return ids, np.arange(width + M) >= width - np.array(lengths)[:, None]


def packed(ids, mask):
    """The same texts one after another in a single row."""
    row, numbers, at, place = [], [], [], 0
    for number, (row_ids, attended) in enumerate(zip(ids, mask, strict=True), 1):
        row += row_ids[attended].tolist()
        numbers += [number] * int(attended.sum())
        place += int(attended.sum())
        at.append(range(place - M, place))
    return Sequences(np.array([row], np.int32), np.array([numbers], np.int32), np.array([at], np.int32))


def padded(ids, mask):
    return Sequences(ids, mask.astype(np.int32), memory_at_end(ids.shape, M))


def runs(x, mask):
    """The mean of each run by definition: token p of n belongs to run p M // n."""
    pooled = np.zeros((len(x), M, x.shape[-1]))
    found = np.zeros((len(x), M, 1), bool)
    for row in range(len(x)):
        tokens = x[row, :-M][mask[row, :-M]]
        for run in range(M):
            in_run = [tokens[p] for p in range(len(tokens)) if p * M // len(tokens) == run]
            if in_run:
                pooled[row, run], found[row, run] = np.mean(in_run, axis=0), True
    return pooled, found


LENGTHS = [9, 7, 3, 2, 0]


def test_runs_are_the_means_of_their_tokens(mesh):
    ids, mask = texts(LENGTHS, 9)
    mask[-1] = False  # an absent text
    x = np.random.default_rng(1).normal(size=(*ids.shape, 8)).astype(np.float32)
    with jax.set_mesh(mesh):
        pooled, found = pool_runs(jnp.asarray(x), jax.tree.map(jnp.asarray, padded(ids, mask)))
    expected, exists = runs(x, mask)
    np.testing.assert_allclose(pooled[:, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], exists)
    assert not found[3].all() and not found[4].any()


@pytest.mark.parametrize("memory_places", ["end", "runs"])
def test_texts_that_share_a_row_have_the_same_memories(mesh, memory_places):
    model = make_model(memory_places=memory_places)
    params = make_params(model, mesh)
    ids, mask = texts([9, 7, 4], 9)
    with jax.set_mesh(mesh):
        alone = encode(model, params, "compressor", put_batch(padded(ids, mask), mesh), scaffold=0.7)
        shared = encode(model, params, "compressor", put_batch(packed(ids, mask), mesh), scaffold=0.7)
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(other[0], one[:, 0], atol=2e-5)


def test_each_memory_token_is_read_after_its_run(mesh):
    """As if it had been written there: states of the rows in that order, one by one."""
    model = make_model("state", "runs")
    params = make_params(model, mesh)
    ids, mask = texts([9, 7, 3, 2], 9)
    with jax.set_mesh(mesh):
        found = encode(model, params, "compressor", put_batch(padded(ids, mask), mesh))
    written, stand = np.zeros_like(ids), np.zeros((len(ids), M), int)
    attended = np.zeros_like(mask)
    for row in range(len(ids)):
        tokens, place = ids[row, :-M][mask[row, :-M]], 0
        for run in range(M):
            in_run = [tokens[p] for p in range(len(tokens)) if p * M // len(tokens) == run]
            written[row, place : place + len(in_run) + 1] = [*in_run, ids[row, -M + run]]
            place += len(in_run) + 1
            stand[row, run] = place - 1
        attended[row, :place] = True
    with jax.set_mesh(mesh):
        x = model.embed(params, put_batch(written, mesh))
        states, _ = model.forward(params, "compressor", x, put_batch(attended, mesh))
    expected = np.take_along_axis(np.asarray(states), stand[..., None], axis=1)
    np.testing.assert_allclose(found.memory[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(found.memory_mean[:, 0], expected.mean(axis=1), atol=2e-5)
    text = [np.setdiff1d(np.flatnonzero(attended[row]), stand[row]) for row in range(len(ids))]
    means = [np.asarray(states)[row, places].mean(axis=0) for row, places in enumerate(text)]
    np.testing.assert_allclose(found.text_mean[:, 0], means, atol=2e-5)


def test_the_equation(mesh):
    """m = s (h - c) + b + β (pool - b); nothing is added where a run is empty."""
    rng = np.random.default_rng(2)
    h, pool = rng.normal(size=(2, 4, M, 6)).astype(np.float32)
    scale, center, shift = rng.normal(size=(3, 6)).astype(np.float32)
    found = np.ones((4, M, 1), bool)
    found[0, 2] = False
    leaves = {"scale": scale, "center": center, "shift": shift}
    memory = map_memory(leaves, h, (pool, found), 0.25)
    expected = scale * (h - center) + shift + 0.25 * np.where(found, pool - shift, 0)
    np.testing.assert_allclose(memory, expected, atol=1e-6)
    np.testing.assert_allclose(map_memory(leaves, h), scale * (h - center) + shift, atol=1e-6)


def test_a_fresh_map_changes_nothing(mesh):
    """As the paper has it, but for a scaffold: and β = 0 as a number or as an array is the same."""
    affine, state = make_model(), make_model("state")
    params = make_params(affine, mesh)
    plain = params | {"tokens": {name: leaf for name, leaf in params["tokens"].items() if name != "map"}}
    given = put_batch(padded(*texts([9, 5], 9)), mesh)
    with jax.set_mesh(mesh):
        expected = encode(state, plain, "compressor", given)
        mapped = encode(affine, params, "compressor", given)
        zero = encode(affine, params, "compressor", given, scaffold=jnp.float32(0))
        one = encode(affine, params, "compressor", given, scaffold=1.0)
    for other in (mapped, zero):
        np.testing.assert_allclose(other.memory, expected.memory, atol=1e-6)
        np.testing.assert_allclose(other.memory_mean, expected.memory_mean, atol=1e-6)
    assert np.abs(one.memory - expected.memory).max() > 1e-2
    np.testing.assert_allclose(one.memory_mean, expected.memory_mean, atol=1e-6)  # L_MSE is of states


@pytest.mark.parametrize("strength", [1.0, 0.02])
def test_where_the_map_starts(strength):
    """Memories then lie where pooled embeddings do, with a share of their spread; absent texts and empty runs aside."""
    rng = np.random.default_rng(3)
    h = 5 + 3 * rng.normal(size=(50, 1, M, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    pool = 0.2 + 0.1 * rng.normal(size=(50, 1, M, 6)).astype(np.float32)
    found, valid = rng.random((50, 1, M, 1)) < 0.8, rng.random((50, 1)) < 0.8
    h[~valid], pool[~valid] = 1e3, 1e3
    counted = found[..., 0] & valid[..., None]
    memory = map_memory(calibrated_map(h, (pool, found), valid, strength), h)[counted]
    np.testing.assert_allclose(np.mean(memory, axis=0), np.mean(pool[counted], axis=0), atol=1e-4)
    np.testing.assert_allclose(np.std(memory, axis=0), strength * np.std(pool[counted], axis=0), rtol=1e-3)
