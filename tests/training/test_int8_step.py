"""Steps on a base in int8: those on the base that it stands for, on any mesh, with a quarter of float32's bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.checkpoints.names import export_base, load_base
from clara_jax.method.parameters import declare, flatten, merge, split, unflatten
from clara_jax.method.stages import STAGES, counts
from clara_jax.model.declare import abstract
from clara_jax.model.quantization import quantize_kernel, quantized_kernels, wide_kernel
from clara_jax.model.sharding import place, put_batch
from clara_jax.training.step import init_state, make_loss, make_train_step
from tests.training.test_step import OBJECTIVE, make_batch, make_model, make_params


def in_int8(model):
    return dataclasses.replace(model, quantization="int8")


@functools.cache
def both(model, mesh):
    """The parameters with the base in int8, and with what that stands for; on the mesh."""
    leaves = flatten(abstract(declare(model.config, model.clara, model.base_dtype, "int8"), mesh))
    quantized = flatten(jax.device_get(make_params(model, mesh)))
    wide = dict(quantized)
    for kernel in quantized_kernels(leaves):
        ins = len(leaves[f"{kernel}/values"].shape) - len(leaves[f"{kernel}/scales"].shape)
        parts = quantize_kernel(quantized.pop(kernel), ins)
        wide[kernel] = np.asarray(wide_kernel(parts))
        quantized |= {f"{kernel}/{part}": array for part, array in parts.items()}
    plain = flatten(abstract(declare(model.config, model.clara, model.base_dtype), mesh))
    assert quantized.keys() == leaves.keys() and wide.keys() == plain.keys()
    return [
        unflatten({path: place(array, like[path].sharding) for path, array in tree.items()})
        for tree, like in ((quantized, leaves), (wide, plain))
    ]


def gradients(model, stage, params, batch, mesh):
    trained, frozen = split(params, STAGES[stage].trains)
    with jax.set_mesh(mesh):
        batch = put_batch(batch, mesh)
        function = jax.jit(jax.value_and_grad(make_loss(model, STAGES[stage], OBJECTIVE), has_aux=True))
        (loss, _), grads = function(trained, frozen, batch, counts(batch), None)
        return jax.device_get((loss, grads))


def assert_near(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys() and one[1]
    for name, leaf in other[1].items():
        assert np.abs(one[1][name] - leaf).max() <= 1e-4 * max(np.abs(leaf).max(), 1e-4), name
        assert leaf.any() or name.endswith("markers"), name


@pytest.mark.parametrize("stage, architecture", [("scp", "qwen3"), ("end_to_end", "phi3")])
def test_gradients_are_those_on_the_dequantized_base(stage, architecture, mesh):
    model = make_model(architecture)
    quantized, wide = both(model, mesh)
    batch = make_batch(model)
    plain = gradients(model, stage, wide, batch, mesh)
    assert_near(gradients(in_int8(model), stage, quantized, batch, mesh), plain)
    exact = gradients(model, stage, make_params(model, mesh), batch, mesh)
    assert abs(exact[0] - plain[0]) > 1e-5, "rounding to int8 does change the loss"


def test_a_mesh_changes_nothing(mesh, mesh222):
    model = in_int8(make_model("llama"))
    batch = make_batch(model)
    one, many = (gradients(model, "scp", both(make_model("llama"), m)[0], batch, m) for m in (mesh, mesh222))
    assert_near(many, one)


def test_a_step_trains_adapters_alone_and_keeps_the_base_in_bytes(mesh):
    model = in_int8(make_model("llama"))
    trained, frozen = split(both(make_model("llama"), mesh)[0], STAGES["scp"].trains)
    assert {leaf.dtype.name for leaf in trained.values()} == {"float32"}
    kernels = [path for path in frozen if "/kernel/" in path and path.endswith("/values")]
    assert len(kernels) == 7 and all(frozen[path].dtype == jnp.int8 for path in kernels)
    assert not [path for path in frozen if "/kernel/" in path and frozen[path].nbytes > frozen[path].size * 4]
    step = make_train_step(model, STAGES["scp"], OBJECTIVE, optimizer := optax.adam(1e-2), accumulate=2)
    with jax.set_mesh(mesh):
        state, losses = init_state(trained, optimizer), []
        batch = put_batch(make_batch(model), mesh)
        for _ in range(4):
            state, metrics = step(state, frozen, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and bool(metrics["finite"])
    assert state.trained.keys() == trained.keys() and merge(state.trained, frozen)["base"].keys()


def test_files_are_quantized_as_a_whole_kernel_would_be(mesh):
    """One layer at a time; fused kernels (Phi-3) by their parts."""
    model = make_model("phi3")
    leaves = flatten({"base": abstract(declare(model.config, model.clara, jnp.float32, "int8")["base"], mesh)})
    base = make_params(model, mesh)["base"]
    tensors = dict(export_base(model.config, base))
    found = load_base(model.config, leaves, tensors)
    assert found.keys() == leaves.keys()
    for kernel in quantized_kernels(leaves):
        wide = np.asarray(flatten({"base": base})[kernel])
        ins = found[f"{kernel}/values"].ndim - found[f"{kernel}/scales"].ndim
        for part, array in quantize_kernel(wide, ins).items():
            np.testing.assert_array_equal(np.asarray(found[f"{kernel}/{part}"]), array, err_msg=kernel)
    again = dict(export_base(model.config, unflatten(found)["base"]))
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert again[name].shape == array.shape
        assert np.abs(again[name] - array).max() <= np.abs(array).max() / 250, name
