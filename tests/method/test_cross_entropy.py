"""The generator's loss: its formula, in chunks of any size, with a head that is trained or not, on one device or on
eight."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.method import cross_entropy
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.cross_entropy import chunk_length, language_model_loss
from clara_jax.model.config import ModelConfig

B, A, E, V, M = 8, 13, 16, 1000, 4
CLARA = ClaraConfig(doc_max_length=16, compress_rate=4)
SPECS = {"table": jax.P("model", "data"), "states": jax.P(("replica", "data")), "labels": jax.P(("replica", "data"))}


def make_model(tied):
    base = {"model_type": "llama", "hidden_size": E, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": V}
    return ClaraModel(
        ModelConfig.from_hf(base | {"num_attention_heads": 2, "tie_word_embeddings": tied}), CLARA, "float32"
    )


def make_arrays(tied):
    rng = np.random.default_rng(0)
    arrays = {"table": rng.normal(0, 0.3, (V, E)), "memory": rng.normal(0, 0.3, (M, E))}
    arrays |= {"markers": rng.normal(0, 0.3, (3, E)), "states": rng.normal(size=(B, A, E))}
    if not tied:
        arrays["output"] = rng.normal(0, 0.3, (M + 3, E))
    labels = rng.integers(0, V + M + 3, (B, A))
    labels[rng.random((B, A)) < 0.3] = -100
    labels[0] = -100
    return {name: x.astype(np.float32) for name, x in arrays.items()} | {"labels": labels.astype(np.int32)}


def loss_of(model, arrays):
    table = {"table": arrays["table"]}
    tokens = {name: arrays[name] for name in ("memory", "markers", "output") if name in arrays}
    # Where the head is not tied, nothing of the loss reads the embedding.
    base = {"embed": table} if model.config.tied else {"embed": {"table": arrays["table"] * 0}, "lm_head": table}
    return language_model_loss(model, {"base": base, "tokens": tokens}, arrays["states"], arrays["labels"])


def formula(tied, arrays):
    """The same in float64, all logits at once."""
    added = jnp.concatenate([arrays["memory"], arrays["markers"]]) if tied else arrays["output"]
    logits = arrays["states"] @ jnp.concatenate([arrays["table"], added]).T
    labels = arrays["labels"]
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    right = jnp.argmax(logits, axis=-1) == labels
    return -jnp.sum(jnp.where(labels >= 0, logp, 0)), jnp.sum(right & (labels >= 0))


def gradients_of(f, arrays, trained):
    rest = {name: x for name, x in arrays.items() if name not in trained}
    # Half of the loss: a cotangent that is not one.
    return jax.value_and_grad(
        lambda variables: (lambda loss, right: (loss / 2, right))(*f(rest | variables)), has_aux=True
    ), {name: arrays[name] for name in trained}


def place(arrays, mesh):
    return {k: jax.device_put(x, jax.NamedSharding(mesh, SPECS.get(k, jax.P()))) for k, x in arrays.items()}


@functools.cache
def expected_gradients_of(tied, trained):
    """The formula's loss, what it gets right, and its gradients: the same wherever and in whatever chunks."""
    with jax.enable_x64(True):
        wide = {
            k: jnp.asarray(x, jnp.float64) if k != "labels" else jnp.asarray(x) for k, x in make_arrays(tied).items()
        }
        f, variables = gradients_of(lambda arrays: formula(tied, arrays), wide, trained)
        return jax.device_get(f(variables))


@functools.cache
def undifferentiated(tied, mesh, logits_bytes):
    """Loss and what is right where no gradient is asked for; ``logits_bytes`` is what was set before."""
    assert cross_entropy.LOGITS_BYTES == logits_bytes
    return jax.device_get(jax.jit(lambda arrays: loss_of(make_model(tied), arrays))(place(make_arrays(tied), mesh)))


HEADS = [
    (True, ("states",)),
    (True, ("states", "memory")),
    (True, ("states", "memory", "markers", "table")),
    (False, ("states", "output", "table")),
    (False, ("memory", "output")),
]


def cases():
    """All heads in chunks of five, those of which everything is trained in all chunks; the rest is slow."""
    for tied, trained in HEADS:
        for positions in (1, 5, 64):
            often = positions == 5 or "table" in trained
            yield pytest.param(tied, trained, positions, marks=[] if often else pytest.mark.slow)


@pytest.mark.parametrize("where", ["mesh", "mesh222"])
@pytest.mark.parametrize(("tied", "trained", "positions"), list(cases()))
def test_loss_and_gradients_are_those_of_the_formula(request, monkeypatch, where, positions, tied, trained):
    mesh = request.getfixturevalue(where)
    split = {"mesh": (1, 1), "mesh222": (4, 2)}[where]
    monkeypatch.setattr(cross_entropy, "LOGITS_BYTES", positions * (B // split[0]) * (V // split[1]) * 4)
    model, arrays = make_model(tied), make_arrays(tied)
    with jax.set_mesh(mesh):
        placed = place(arrays, mesh)
        assert chunk_length(placed["states"], placed["table"]) == {1: 1, 5: 5, 64: A}[positions]
        plain = undifferentiated(tied, mesh, cross_entropy.LOGITS_BYTES)
        f, variables = gradients_of(lambda arrays: loss_of(model, arrays), placed, trained)
        (loss, right), gradients = jax.device_get(jax.jit(f)(variables))
        for name in trained:
            assert gradients[name].shape == arrays[name].shape
    np.testing.assert_allclose(float(plain[0]), 2 * loss, rtol=1e-6)
    assert float(plain[1]) == right
    (expected, expected_right), expected_gradients = expected_gradients_of(tied, trained)
    np.testing.assert_allclose(loss, float(expected), rtol=1e-5)
    assert right == expected_right
    for name in trained:
        assert tied or name == "memory" or np.abs(expected_gradients[name]).max() > 0.01
        np.testing.assert_allclose(gradients[name], expected_gradients[name], rtol=0, atol=1e-5, err_msg=name)


def test_chunks_follow_the_bytes_of_a_devices_logits(mesh222):
    """Rows over four devices, vocabulary over two."""
    found = {}
    for rows, targets, vocabulary in [(16, 256, 32_000), (64, 256, 128_256), (64, 256, 200_064), (1024, 512, 200_064)]:
        shapes = {"states": (rows, targets, 8), "table": (vocabulary, 8)}
        arguments = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh222, SPECS[name]))
            for name, shape in shapes.items()
        ]
        with jax.set_mesh(mesh222):
            jax.eval_shape(lambda *x: found.update({(rows, vocabulary): chunk_length(*x)}), *arguments)  # noqa: B023
        length = found[rows, vocabulary]
        size = length * rows // 4 * vocabulary // 2 * 4
        assert size <= cross_entropy.LOGITS_BYTES or length == 1
        assert length == targets or 3 * size > cross_entropy.LOGITS_BYTES, "no smaller than they need to be"
    assert list(found.values()) == sorted(found.values(), reverse=True) and len(set(found.values())) == 4


def lowered(mesh, trained):
    model, arrays = make_model(True), make_arrays(True)
    with jax.set_mesh(mesh):
        f, variables = gradients_of(lambda arrays: loss_of(model, arrays), place(arrays, mesh), trained)
        return jax.jit(f).lower(variables)


@pytest.mark.parametrize("trained", [("states", "memory"), ("states", "memory", "table")])
def test_logits_stay_where_they_are(monkeypatch, mesh222, trained):
    """No collective carries the width of the vocabulary, nor a device's part of it for every position."""
    monkeypatch.setattr(cross_entropy, "LOGITS_BYTES", 5 * (B // 4) * (V // 2) * 4)
    text = lowered(mesh222, trained).compile().as_text()
    collectives = re.findall(
        r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", text
    )
    assert collectives
    for line in collectives:
        for shape in re.findall(r"(?:f32|bf16)\[([\d,]*)\]", line):
            sizes = [int(size) for size in shape.split(",") if size]
            assert V not in sizes, line
            assert V // 2 not in sizes or E in sizes or E // 2 in sizes, line  # the table's rows may


@pytest.mark.parametrize(("trained", "products"), [(("states", "memory"), 2), (("states", "table"), 3)])
def test_the_head_is_multiplied_as_often_as_it_must_be(mesh, trained, products):
    """Logits, the states' gradient, and the table's where it is trained: nothing is made again."""
    text = lowered(mesh, trained).as_text()
    assert (
        len([line for line in text.splitlines() if "dot_general" in line and re.search(rf"\b{V}x", line)]) == products
    )
