"""The precision "mixed": near float32 in all that it computes, and bfloat16 in all that it multiplies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.compressor import encode
from clara_jax.method.parameters import declare, split
from clara_jax.method.stages import STAGES, counts
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract
from clara_jax.model.sharding import put_batch
from clara_jax.training.step import make_loss
from tests.training.test_step import CONFIGS, OBJECTIVE, SIZES, make_batch, make_params

RANK, MEMORY = 5, 4  # no other axis has the size of the rank, or of the added rows, MEMORY and three markers
BASE = ("base", "lora/compressor", "lora/generator", "tokens/memory")
COSINE, LOSS = 0.999, 0.01
GRADIENT = 0.08  # norm of the difference relative to the norm, of each leaf; measured 0.02 to 0.042 (llama, scp)


def models(architecture, attention="auto"):
    clara = ClaraConfig(doc_max_length=12, compress_rate=12 // MEMORY, lora_rank=RANK, lora_dropout=0.0)
    config = ModelConfig.from_hf(SIZES | CONFIGS[architecture])
    return [ClaraModel(config, clara, precision, attention=attention) for precision in ("float32", "mixed")]


def parameters(model, mesh):
    """The same numbers in all precisions: those that bfloat16 has."""
    params = make_params(dataclasses.replace(model, precision="float32"), mesh)
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(model.base_dtype), params["base"])
    return {**params, "base": base}


def gradient_of(model, stage, trains, params, batch):
    trained, frozen = split(params, trains or stage.trains)
    function = jax.value_and_grad(make_loss(model, stage, OBJECTIVE), has_aux=True)
    return function, (trained, frozen, batch, counts(batch), None)


@pytest.mark.parametrize(
    ("name", "architecture", "trains"),
    [
        pytest.param("scp", "llama", None, marks=pytest.mark.slow),
        ("scp", "qwen3", BASE),
        ("end_to_end", "phi3", None),
    ],
)
def test_losses_and_gradients_are_near_those_of_float32(name, architecture, trains, mesh):
    results = []
    batch = put_batch(make_batch(models(architecture)[0]), mesh)
    with jax.set_mesh(mesh):
        for model in models(architecture):
            function, arguments = gradient_of(model, STAGES[name], trains, parameters(model, mesh), batch)
            results.append(jax.device_get(jax.jit(function)(*arguments)))
    ((loss, terms), gradients), ((other, other_terms), other_gradients) = results
    assert abs(other - loss) < LOSS * abs(loss)
    assert other_terms["ce"].dtype == np.float32
    for path, expected in gradients.items():
        found = other_gradients[path].astype(np.float32)
        assert np.linalg.norm(expected) > 0, path
        assert np.linalg.norm(found - expected) < GRADIENT * np.linalg.norm(expected), path


def test_memories_are_near_those_of_float32(mesh):
    batch = put_batch(make_batch(models("llama")[0]), mesh)
    found = []
    with jax.set_mesh(mesh):
        for model in models("llama"):
            run = jax.jit(encode, static_argnums=(0, 2))
            memory = run(model, parameters(model, mesh), "compressor", batch.query, None).memory
            assert memory.dtype == jnp.float32
            found.append(np.asarray(memory, np.float64))
    one, other = found
    cosines = np.sum(one * other, -1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    assert 0 < 1 - cosines.min() < 1 - COSINE  # and it is another precision


def test_eight_devices_equal_one(mesh, mesh222):
    model = models("llama")[1]
    results = []
    for where in (mesh, mesh222):
        batch = put_batch(make_batch(model), where)
        with jax.set_mesh(where):
            function, arguments = gradient_of(model, STAGES["scp"], BASE, parameters(model, where), batch)
            results.append(jax.device_get(jax.jit(function)(*arguments)))
    ((loss, _), gradients), ((other, _), other_gradients) = results
    np.testing.assert_allclose(other, loss, rtol=2e-3)
    for path, expected in gradients.items():
        distance = np.linalg.norm(np.asarray(other_gradients[path] - expected, np.float32))
        assert distance < GRADIENT * np.linalg.norm(np.asarray(expected, np.float32)), path


@pytest.mark.parametrize(
    ("name", "architecture", "trains"),
    [
        pytest.param("scp", "llama", None, marks=pytest.mark.slow),
        ("scp", "phi3", BASE),
        ("end_to_end", "qwen3", None),
    ],
)
def test_every_product_is_of_two_bfloat16_with_a_float32_sum(name, architecture, trains, mesh):
    """Forward and backward. Those of the adapters' rank, of the few added tokens, scores and means are float32."""
    model = models(architecture)[1]
    batch = put_batch(make_batch(model), mesh)
    added, documents = MEMORY + 3, batch.documents.ids.shape[1]
    with jax.set_mesh(mesh):
        params = abstract(declare(model.config, model.clara, model.base_dtype), mesh)  # traced, not computed
        function, arguments = gradient_of(model, STAGES[name], trains, params, batch)
        found = products(jax.make_jaxpr(function)(*arguments).jaxpr)
    narrow = 0
    for left, right, result in found:
        dtypes = left.dtype.name, right.dtype.name, result.dtype.name
        sizes = {*left.shape, *right.shape}
        # The documents' axis beside the memories': the choice among them, and cosines of all one after another.
        ranks = documents in sizes and bool({MEMORY, MEMORY * model.config.embed_dim} & sizes)
        # Of rows with one text each: the mean of its states, with one weight for each of its tokens.
        mean = left.ndim == right.ndim == 3 and left.shape[0] == right.shape[0] and 1 in sizes
        if RANK in sizes or added in sizes or ranks or mean:
            assert dtypes == ("float32",) * 3, (left, right)
        else:
            assert dtypes == ("bfloat16", "bfloat16", "float32"), (left, right)
            narrow += 1
    # For each of two roles seven maps forward and back to their input, and attention's two and five; and the head's.
    assert narrow >= 2 * (2 * 7 + 2 + 5) + 2 + (2 * 7 if trains else 0)


def products(jaxpr):
    """(left, right, result) of every product, as abstract arrays."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append((*(x.aval for x in eqn.invars), eqn.outvars[0].aval))
        for inner in jaxprs_in_params(eqn.params):
            found += products(inner)
    return found
