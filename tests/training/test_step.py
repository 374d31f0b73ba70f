"""A step is the same number whatever the mesh, the microbatches or the padding, and touches only what its stage
trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, memory_at_end
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.generator import target_states
from clara_jax.method.parameters import MAP, declare, split
from clara_jax.method.stages import STAGES, Objective, as_text, counts
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import initialise
from clara_jax.model.sharding import BATCH, make_mesh, put_batch
from clara_jax.training.step import example_keys, init_state, make_loss, make_train_step, microbatches

CONFIGS = {
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2, "sliding_window": 9},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 58,
    "rope_theta": 1e4,
}
OBJECTIVE = Objective(top_k=2, temperature=0.1)


def make_model(architecture="llama", dropout=0.0, remat="none"):
    clara = ClaraConfig(doc_max_length=12, compress_rate=4, lora_rank=4, lora_dropout=dropout)
    return ClaraModel(ModelConfig.from_hf(SIZES | CONFIGS[architecture]), clara, "float32", remat)


@functools.cache
def make_params(model, mesh):
    """Random everywhere: fresh adapters are zero in B and would hide half of the gradients."""
    params = initialise(declare(model.config, model.clara, jnp.float32), jax.random.key(0), mesh)
    with jax.set_mesh(mesh):
        noise = jax.jit(
            lambda tree: jax.tree.map(
                lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), tree
            )
        )
        return params | {
            "lora": jax.device_put(
                noise(jax.device_get(params["lora"])), jax.tree.map(lambda x: x.sharding, params["lora"])
            )
        }


def make_batch(model, rows=8, documents=3, seed=0, pad=0):
    """Ragged rows; ``pad`` more columns of padding change nothing."""
    rng = np.random.default_rng(seed)
    count, vocabulary = model.clara.memory_tokens, model.config.vocab_size
    memory_ids = vocabulary + np.arange(count)

    def texts(shape, width):
        lengths = rng.integers(3, width + 1, shape)
        ids = rng.integers(0, vocabulary, (*shape, width))
        mask = np.arange(width) >= width - lengths[..., None]
        ids, mask = np.pad(ids, [(0, 0)] * len(shape) + [(pad, 0)]), np.pad(mask, [(0, 0)] * len(shape) + [(pad, 0)])
        return np.where(mask, ids, 0), mask

    def encoder(shape, width):
        ids, mask = texts(shape, width)
        ids = np.concatenate([ids, np.broadcast_to(memory_ids, (*shape, count))], -1)
        mask = np.concatenate([mask, np.ones((*shape, count), bool)], -1)
        return Sequences(as_int(ids), as_int(mask), memory_at_end(ids.shape, count))

    as_int = lambda x: x.astype(np.int32)  # noqa: E731
    candidates = encoder((rows, documents), 9)
    valid = np.arange(documents) < rng.integers(1, documents + 1, (rows, 1))
    candidates = candidates.replace(segment_ids=candidates.segment_ids * valid[..., None])
    query = encoder((rows,), 6)
    prompt_ids, prompt_mask = texts((rows,), 20)
    prompt_mask[:, -16:] = True
    index = np.full(prompt_ids.shape, -1)
    slots = np.minimum(valid.sum(1), OBJECTIVE.top_k)
    for row in range(rows):
        n = slots[row] * count
        index[row, -15 : -15 + n] = np.arange(n)
    labels = prompt_ids[:, -6:].copy()
    labels[np.arange(6) < rng.integers(0, 4, (rows, 1))] = -100
    positives = np.zeros((rows, documents), bool)
    positives[np.arange(rows), rng.integers(0, valid.sum(1))] = True
    positives[0] = False
    places = np.tile(np.arange(prompt_ids.shape[1] - 6, prompt_ids.shape[1]), (rows, 1))
    return Batch(
        documents=candidates,
        document_valid=valid,
        query=query,
        prompt=PromptBatch(*map(as_int, (prompt_ids, prompt_mask, index, labels, places))),
        positives=positives,
        example_ids=as_int(np.arange(rows)[:, None] + 5),
    )


def with_prompt(batch, **fields):
    """The batch with other arrays in its prompts."""
    return dataclasses.replace(batch, prompt=dataclasses.replace(batch.prompt, **fields))


@functools.cache
def gradient(stage, model):
    return jax.jit(jax.value_and_grad(make_loss(model, STAGES[stage], OBJECTIVE), has_aux=True))


def loss_and_gradients(stage, model, batch, mesh, subtrees=None):
    params = make_params(model, mesh)
    with jax.set_mesh(mesh):
        trained, frozen = split(params, subtrees or STAGES[stage].trains)
        batch = put_batch(batch, mesh)
        keys = example_keys(jax.random.key(3), batch.example_ids)
        (loss, terms), grads = gradient(stage, model)(trained, frozen, batch, counts(batch), keys)
        return jax.device_get((loss, terms, grads))


def assert_same(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)
    assert one[2].keys() == other[2].keys() and one[2]
    for path, gradient in one[2].items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(gradient, other[2][path], rtol=0, atol=1e-5 * scale, err_msg=path)
        assert np.any(gradient != 0), f"{path} has no gradient at all: the comparison would be empty"


@pytest.mark.parametrize(
    ("stage", "dropout"),
    [
        ("scp", 0.2),  # instruct has its loss
        ("end_to_end", 0.2),
        ("retrieval", 0.0),
        *(pytest.param(stage, 0.0, marks=pytest.mark.slow) for stage in STAGES if stage != "retrieval"),
        *(pytest.param(stage, 0.2, marks=pytest.mark.slow) for stage in ("instruct", "retrieval")),
    ],
)
def test_eight_devices_equal_one(stage, dropout, mesh, mesh222):
    model = make_model("llama", dropout)
    batch = make_batch(model)
    assert_same(loss_and_gradients(stage, model, batch, mesh), loss_and_gradients(stage, model, batch, mesh222))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["phi3", "qwen3"])
def test_eight_devices_equal_one_with_everything_trained(architecture, mesh, mesh222):
    """Another base from scratch: fused and separate maps, untied head, per-head norms, sliding window,
    rematerialized."""
    subtrees = ("base", "lora/compressor", "lora/generator", "tokens/memory")
    batch = make_batch(make_model(architecture))
    plain = loss_and_gradients("scp", make_model(architecture), batch, mesh, subtrees)
    assert_same(plain, loss_and_gradients("scp", make_model(architecture, remat="full"), batch, mesh222, subtrees))


def test_a_kernel_for_attention_changes_nothing(mesh, mesh222):
    """Interpreted, inside the scan over layers and rematerialized, on one device and on eight."""
    model = make_model(remat="full")
    batch = make_batch(model)
    plain = loss_and_gradients("scp", model, batch, mesh)
    assert_same(plain, loss_and_gradients("scp", dataclasses.replace(model, attention="splash"), batch, mesh222))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("names", "mlp")]


@pytest.mark.parametrize("remat", ["offload", "products", *SLOW])
def test_what_is_kept_of_a_block_changes_nothing(remat, mesh):
    batch = make_batch(make_model())
    plain = loss_and_gradients("scp", make_model(), batch, mesh)
    assert_same(plain, loss_and_gradients("scp", make_model(remat=remat), batch, mesh))


def test_dropout_changes_the_loss(mesh):
    batch = make_batch(make_model())
    with_dropout = loss_and_gradients("scp", make_model(dropout=0.2), batch, mesh)
    assert abs(with_dropout[0] - loss_and_gradients("scp", make_model(), batch, mesh)[0]) > 1e-3


@pytest.mark.parametrize("stage", ["scp", "end_to_end"])
def test_padding_changes_nothing_with_dropout(stage, mesh):
    model = make_model(dropout=0.2)
    assert_same(
        loss_and_gradients(stage, model, make_batch(model), mesh),
        loss_and_gradients(stage, model, make_batch(model, pad=5), mesh),
    )


@pytest.mark.parametrize(
    "stage,parts",
    [
        ("retrieval", (1, 4)),
        *(pytest.param(stage, (1, 2, 4), marks=pytest.mark.slow) for stage in STAGES),
    ],
)
def test_accumulation_equals_the_whole_batch_and_frozen_leaves_stay_out(stage, parts, mesh):
    model = make_model(dropout=0.2)
    results = []
    for accumulate in parts:
        params = make_params(model, mesh)
        trained, frozen = split(params, STAGES[stage].trains)
        with jax.set_mesh(mesh):
            # Plain descent: the updates are the gradients, so nothing hides a difference.
            state = init_state(trained, optax.sgd(1.0, momentum=0.9))
            step = make_train_step(model, STAGES[stage], OBJECTIVE, optax.sgd(1.0, momentum=0.9), accumulate)
            key = jax.random.key(0)
            metrics = []
            for i in range(2):
                state, values = step(state, frozen, put_batch(make_batch(model, seed=i), mesh), key)
                metrics.append(jax.device_get(values))
            assert step._cache_size() == 1, "a stage compiles once"
        assert set(state.trained) == set(trained) and not set(state.trained) & set(frozen)
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
        assert sorted(m.size for m in moments) == sorted(t.size for t in trained.values()), (
            "moments for what is trained, only"
        )
        results.append((metrics, jax.device_get(state.trained)))
    for metrics, after in results[1:]:
        for one, other in zip(results[0][0], metrics, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                rtol = 1e-4 if "norm" in name else 1e-5
                np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-5, err_msg=name)
        for path, value in results[0][1].items():
            limit = 2e-5 * max(1.0, np.abs(value).max())  # sums of several parts are rounded otherwise
            np.testing.assert_allclose(after[path], value, rtol=0, atol=limit, err_msg=path)


@pytest.mark.parametrize("several", [((1, 4), (8, 2)), pytest.param(((1, 4), (8, 1), (8, 2)), marks=pytest.mark.slow)])
def test_a_step_over_texts(several, mesh, mesh222):
    """Nothing but prompts: one device and eight, the whole batch and its parts make the same steps; the loss falls."""
    model, stage, losses = make_model(dropout=0.2), as_text(STAGES["instruct"]), {}
    batch = make_batch(model)
    batch = with_prompt(batch, memory_index=np.full_like(batch.prompt.memory_index, -1))
    none = dict.fromkeys(("documents", "query", "positives"))
    batch = dataclasses.replace(batch, **none, document_valid=batch.document_valid[:, :0])
    for devices, accumulate in ((1, 1), *several):
        where = {1: mesh, 8: mesh222}[devices]
        trained, frozen = split(make_params(model, where), stage.trains)
        assert {path.split("/")[1] for path in trained} == {"generator"}
        with jax.set_mesh(where):
            optimizer = optax.adamw(1e-2)
            state, run_losses = init_state(trained, optimizer), []
            step = make_train_step(model, stage, OBJECTIVE, optimizer, accumulate)
            key = jax.device_put(jax.random.key(0), jax.NamedSharding(where, jax.P()))
            for _ in range(6):
                state, values = step(state, frozen, put_batch(batch, where), key)
                run_losses.append(float(values["loss"]))
        assert "mse" not in values and step._cache_size() == 1 and values["loss"] == values["ce"]
        losses[where, accumulate] = run_losses
    assert run_losses[-1] < run_losses[0] - 0.1
    for place, run_losses in losses.items():
        np.testing.assert_allclose(run_losses, losses[mesh, 1], rtol=0, atol=2e-5, err_msg=str(place))


def test_texts_are_worth_what_a_prompt_with_their_embeddings_as_memories_is(mesh):
    """Memories that are the embeddings of the tokens that stand there are text."""
    model, batch = make_model(), make_batch(make_model(), documents=1)
    params = make_params(model, mesh)
    text = with_prompt(batch, memory_index=np.full_like(batch.prompt.memory_index, -1))
    with jax.set_mesh(mesh):
        placed = put_batch((batch, text), mesh)
        rows, count = len(batch.prompt.ids), model.clara.memory_tokens
        at = np.argsort(batch.prompt.memory_index < 0, axis=1, kind="stable")[:, :count]
        vectors = model.embed(params, jnp.asarray(np.take_along_axis(batch.prompt.ids, at, axis=1)))
        of_memories = target_states(model, params, placed[0].prompt, vectors.reshape(rows, 1, count, -1))
        np.testing.assert_array_equal(of_memories, target_states(model, params, placed[1].prompt, None))


SPLITS = [(devices, accumulate) for devices in (1, 8) for accumulate in (1, 2, 4)] + [(1, 32)]


@pytest.mark.parametrize(
    "stage,splits",
    [
        ("scp", [(1, 1), (1, 32)]),  # one row at a time
        pytest.param("retrieval", [(1, 1), (8, 4)], marks=pytest.mark.slow),
        *(pytest.param(stage, SPLITS, marks=pytest.mark.slow) for stage in STAGES),
    ],
)
def test_losses_are_the_same_however_a_batch_is_split(stage, splits, mesh):
    """Accumulation on one device and on eight, dropout on: three steps of AdamW, loss by loss."""
    model, losses = make_model(dropout=0.2), {}
    optimizer = optax.adamw(1e-3)
    for devices, accumulate in splits:
        where = mesh if devices == 1 else make_mesh(8, 1)
        trained, frozen = split(make_params(model, where), STAGES[stage].trains)
        with jax.set_mesh(where):
            state = init_state(trained, optimizer)
            step = make_train_step(model, STAGES[stage], OBJECTIVE, optimizer, accumulate)
            key, run_losses = jax.device_put(jax.random.key(0), jax.NamedSharding(where, jax.P())), []
            for i in range(3):
                state, values = step(state, frozen, put_batch(make_batch(model, rows=32, seed=i), where), key)
                run_losses.append(float(values["loss"]))
        losses[devices, accumulate] = run_losses
    assert len(losses) == len(splits) and len(set(losses[1, 1])) == 3
    for split_in, run_losses in losses.items():
        np.testing.assert_allclose(run_losses, losses[1, 1], rtol=0, atol=1e-5, err_msg=str(split_in))


def test_norms_of_subtrees_make_up_the_whole(mesh):
    model, subtrees = make_model(), ("base", *STAGES["scp"].trains)
    trained, frozen = split(make_params(model, mesh), subtrees)
    optimizer = optax.sgd(0.5)
    with jax.set_mesh(mesh):
        before = jax.device_get(trained)
        step = make_train_step(model, STAGES["scp"], OBJECTIVE, optimizer)
        state, values = step(
            init_state(trained, optimizer), frozen, put_batch(make_batch(model), mesh), jax.random.key(0)
        )
    values = jax.device_get(values)
    for kind in ("grad_norm", "update_norm"):
        parts = {name.removeprefix(f"{kind}/"): x for name, x in values.items() if name.startswith(f"{kind}/")}
        assert set(parts) == set(subtrees) - {MAP}  # of which this model has none
        whole = values["grad_norm"] * (1 if kind == "grad_norm" else 0.5)
        np.testing.assert_allclose(np.sqrt(sum(x**2 for x in parts.values())), whole, rtol=1e-5)
    moved = sum(np.sum((state.trained[p] - before[p]) ** 2) for p in before if p.startswith("lora/generator/"))
    np.testing.assert_allclose(values["update_norm/lora/generator"], np.sqrt(moved), rtol=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(mesh):
    model, optimizer = make_model(), optax.adam(0.1)
    trained, frozen = split(make_params(model, mesh), STAGES["scp"].trains)
    broken = {**frozen, "base/embed/table": frozen["base/embed/table"] * np.inf}
    with jax.set_mesh(mesh):
        step = make_train_step(model, STAGES["scp"], OBJECTIVE, optimizer)
        batch, key = put_batch(make_batch(model), mesh), jax.random.key(0)
        state, values = step(init_state(trained, optimizer), frozen, batch, key)
        assert values["finite"]
        before = jax.device_get(state)
        state, values = step(state, broken, batch, key)
    assert not values["finite"]
    assert state.step == 2 and state.optimizer[0].count == 2
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        if np.issubdtype(new.dtype, np.floating):
            np.testing.assert_array_equal(old, new)


def test_documents_that_are_absent_count_for_nothing(mesh):
    """Other tokens in absent documents leave loss and gradients exactly as they are."""
    model = make_model()
    batch = make_batch(model)
    ids = np.where(batch.document_valid[..., None], batch.documents.ids, 7).astype(np.int32)
    other = dataclasses.replace(batch, documents=dataclasses.replace(batch.documents, ids=ids))
    for stage in STAGES:
        assert_same(
            loss_and_gradients(stage, model, batch, mesh),
            loss_and_gradients(stage, model, other, mesh),
        )


@pytest.mark.parametrize("stage", ["instruct", "end_to_end"])
def test_a_batch_of_one_row(stage, mesh):
    """An axis of one element must not be taken for another: the row is worth what it is beside a row that is empty."""
    model = make_model()
    alone = make_batch(model, rows=1)  # three documents
    alone = dataclasses.replace(alone, positives=alone.document_valid)
    two = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), alone)
    two.prompt.labels[1], two.example_ids[1] = -100, -1
    assert_same(loss_and_gradients(stage, model, alone, mesh), loss_and_gradients(stage, model, two, mesh))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_any_size_keep_their_rows_on_their_devices(parts):
    """Parts of as many rows as devices, too: one row on one device."""
    for data in (1, 2):
        where = make_mesh(data, 1, devices=jax.devices()[:data])
        x = np.arange(4 * data * 3).reshape(4 * data, 3)
        with jax.set_mesh(where):
            found = jax.jit(lambda x: microbatches(x, parts))(put_batch(x, where))
        assert jax.typeof(found).sharding.spec == jax.P(None, BATCH, None)
        assert sorted(map(tuple, jax.device_get(found).reshape(-1, 3))) == [tuple(row) for row in x]
