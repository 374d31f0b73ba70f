"""Every implementation of attention computes the same values and gradients as the formula in NumPy."""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.chips import topology_devices
from clara_jax.errors import ClaraError
from clara_jax.model.attention import attention, blocks, choose, make_attention_mask
from clara_jax.model.sharding import make_mesh
from clara_jax.model.transformer import positions_of
from tests.aot import test_planning as planned

B, H, C = 4, 4, 16
GPUS = [device for device in jax.devices() if device.platform == "gpu"]
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def naive(q, k, v, sequences, window):
    """softmax(q kᵀ / √C) v token by token, float64; 0 at padding."""
    rows, length, heads, channels = q.shape
    out = np.zeros(q.shape)
    for b in range(rows):
        for t in np.flatnonzero(sequences[b]):
            seen = [s for s in range(t + 1) if sequences[b, s] == sequences[b, t]]  # in order: the newest end it
            seen = seen if window is None else seen[-window:]
            for h in range(heads):
                g = h * k.shape[2] // heads
                scores = k[b, seen, g] @ q[b, t, h] / np.sqrt(channels)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights / weights.sum() @ v[b, seen, g]
    return out


def naive_gradients(q, k, v, sequences, window, cotangent):
    """The same with arrays, so that JAX can differentiate it in float64; and its gradients."""
    with jax.enable_x64(True):
        length, heads = q.shape[1:3]
        position = np.asarray(positions_of(jnp.asarray(sequences)))
        mask = np.tril(np.ones((length, length), bool)) & (sequences[:, :, None] == sequences[:, None, :])
        if window is not None:
            mask &= position[:, :, None] - position[:, None, :] < window

        def formula(q, k, v):
            k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
            scores = jnp.einsum("bthc,bshc->bhts", q, k) / np.sqrt(q.shape[-1])
            weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
            return jnp.einsum("bhts,bshc->bthc", weights, v)

        @jax.jit
        def both(q, k, v, cotangent):
            value, pull = jax.vjp(formula, q, k, v)
            return value, pull(cotangent)

        wide = [jnp.asarray(x, jnp.float64) for x in (q, k, v, cotangent)]
        value, gradients = both(*wide)
        return np.asarray(value), [np.asarray(x) for x in gradients]


def row(*runs):
    """``row((2, 0), (3, 1))`` is 0 0 1 1 1."""
    return np.concatenate([np.full(count, number, np.int32) for count, number in runs])


# sequences [B, T] (a bool array where rows are one sequence), key/value heads, window
CASES = {
    "left padding": (np.arange(130) >= np.array([[0], [1], [17], [129]]), 2, None),
    "padding anywhere": (np.random.default_rng(1).random((B, 40)) < 0.7, 4, None),
    "one key/value head": (np.arange(24) >= np.array([[0], [1], [9], [20]]), 1, None),
    "sequences": (
        np.stack(
            [
                row((20, 1), (7, 2), (23, 3)),
                row((5, 0), (40, 1), (5, 0)),
                row((1, 1), (1, 2), (40, 3), (8, 0)),
                row((50, 1)),
            ]
        ),
        2,
        None,
    ),
    "window": (np.arange(33) >= np.array([[0], [3], [20], [30]]), 2, 7),
    "window, padding anywhere": (np.random.default_rng(2).random((B, 33)) < 0.7, 2, 7),
    "window, sequences": (np.stack([row((20, 1), (13, 2))] * 3 + [row((9, 0), (24, 1))]), 2, 7),
    "window that holds everything": (np.arange(33) >= np.array([[0], [3], [20], [30]]), 2, 33),
    "several blocks": (np.arange(600) >= np.array([[0], [3], [300], [590]]), 2, None),
}


def make_arrays(case, dtype):
    sequences, groups, window = CASES[case]
    rng = np.random.default_rng(0)
    shape = sequences.shape
    q, k, v, cotangent = (rng.normal(size=(*shape, heads, C)) for heads in (H, groups, groups, H))
    # What padding makes means nothing, so nothing reads it.
    cotangent *= (sequences != 0)[..., None, None]
    return [np.asarray(x, jnp.dtype(dtype)) for x in (q, k, v)], cotangent, sequences, window


@functools.cache
def expected_of(case, dtype):
    """What all implementations are held to, in float64."""
    arrays, cotangent, sequences, window = make_arrays(case, dtype)
    return naive_gradients(*[np.asarray(x, np.float64) for x in arrays], sequences, window, cotangent)


@functools.cache
def run(implementation, case, dtype, where):
    """Values and gradients on a mesh, heads split over "model" where it divides them."""
    ((q, k, v), cotangent, sequences, window), axis = make_arrays(case, dtype), "model"

    def place(x, heads=True):
        split = axis if heads and x.shape[2] % where.shape[axis] == 0 else None
        spec = jax.P(("replica", "data"), None, split) if heads else jax.P(("replica", "data"))
        return jax.device_put(x, jax.NamedSharding(where, spec))

    def f(q, k, v, sequences, cotangent):
        attention_mask = make_attention_mask(implementation, sequences, positions_of(sequences), window, C, q.dtype)
        cut = window is not None and window < sequences.shape[1]
        assert attention_mask.implementation == ("xla" if implementation == "splash" and cut else implementation)
        value, pull = jax.vjp(lambda *x: attention(*x, attention_mask), q, k, v)
        assert value.shape == q.shape and value.dtype == q.dtype
        return value, pull(cotangent.astype(q.dtype))

    with jax.set_mesh(where), jax.default_matmul_precision("highest"):
        out = jax.jit(f)(place(q), place(k), place(v), place(sequences, False), place(cotangent))
        value, gradients = jax.device_get(out)
    return np.asarray(value, np.float64), [np.asarray(x, np.float64) for x in gradients]


def close(found, expected, dtype, name):
    limit = TOLERANCE[dtype] * max(1, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=name)


needs_gpu = pytest.mark.skipif(not GPUS, reason="cuDNN's attention needs an NVIDIA GPU")


def cases():
    for implementation in ("xla", "blockwise", "splash", "cudnn"):
        for case in CASES:
            for dtype in ("float32", "bfloat16"):
                if implementation != "cudnn":
                    often = dtype == "float32" or case in ("left padding", "window, sequences", "several blocks")
                    yield pytest.param(implementation, case, dtype, marks=[] if often else pytest.mark.slow)
                elif dtype == "bfloat16":
                    yield pytest.param(implementation, case, dtype, marks=needs_gpu)


@pytest.mark.parametrize(("implementation", "case", "dtype"), list(cases()))
def test_values_and_gradients(implementation, case, dtype, mesh):
    where = make_mesh(1, 1, devices=GPUS[:1]) if implementation == "cudnn" else mesh
    sequences, _, _ = CASES[case]
    value, gradients = run(implementation, case, dtype, where)
    expected, expected_gradients = expected_of(case, dtype)
    assert np.all(np.isfinite(value)), "padding is finite, too"
    attended = sequences != 0
    close(value[attended], expected[attended], dtype, "value")
    for name, one, other in zip("qkv", gradients, expected_gradients, strict=True):
        assert np.abs(other).max() > 0.1
        close(one, other, dtype, f"gradient of {name}")


@pytest.mark.parametrize("case", ["left padding", "window, padding anywhere", "window, sequences", "sequences"])
def test_the_formula_is_what_it_says(case):
    """Arrays and masks against a loop over tokens that knows neither."""
    arrays, cotangent, sequences, window = make_arrays(case, "float32")
    wide = [np.asarray(x, np.float64) for x in arrays]
    value, _ = expected_of(case, "float32")
    attended = sequences != 0
    np.testing.assert_allclose(value[attended], naive(*wide, sequences, window)[attended], rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", ["xla", "blockwise", "splash"])
@pytest.mark.parametrize(
    "case", [pytest.param("left padding", marks=pytest.mark.slow), "one key/value head", "sequences"]
)
def test_eight_devices_equal_one(implementation, case, mesh, mesh222):
    value, gradients = run(implementation, case, "float32", mesh)
    split_value, split_gradients = run(implementation, case, "float32", mesh222)
    np.testing.assert_allclose(split_value, value, rtol=0, atol=1e-5)
    for one, other in zip(split_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_blocks_hold_all_tokens_and_little_more():
    for length in (1, 40, 128, 274, 512, 513, 640, 1000, 1024, 1100, 2048, 4097):
        block, count = blocks(length)
        assert block % 128 == 0 and block <= 512 and count * block >= length
        assert count == 1 or (count - 1) * 512 < length <= count * block < length + count * 128


class Devices:
    """A mesh of which only the kind of its devices is known."""

    def __init__(self, platform, kind):
        self.abstract_device = type("Device", (), {"platform": platform, "device_kind": kind})


@pytest.mark.parametrize(
    ("platform", "kind", "channels", "dtype", "cached", "windowed", "chosen"),
    [
        ("cpu", "cpu", 64, "bfloat16", False, False, "blockwise"),
        ("cpu", "cpu", 64, "float32", False, True, "blockwise"),
        ("cpu", "cpu", 64, "float32", True, False, "xla"),
        ("tpu", "TPU v5 lite", 64, "bfloat16", False, False, "splash"),
        ("tpu", "TPU v5 lite", 128, "float32", False, False, "splash"),
        ("tpu", "TPU v5 lite", 64, "bfloat16", True, False, "xla"),
        ("tpu", "TPU v5 lite", 64, "bfloat16", False, True, "xla"),
        ("gpu", "NVIDIA H100 80GB HBM3", 128, "bfloat16", False, False, "cudnn"),
        ("gpu", "NVIDIA H100 80GB HBM3", 128, "bfloat16", False, True, "cudnn"),
        ("gpu", "NVIDIA H100 80GB HBM3", 128, "bfloat16", True, False, "xla"),
        ("gpu", "NVIDIA H100 80GB HBM3", 128, "float32", False, False, "xla"),
        ("gpu", "NVIDIA H100 80GB HBM3", 100, "bfloat16", False, False, "xla"),
        ("gpu", "Tesla T4", 64, "bfloat16", False, False, "xla"),
    ],
)
def test_auto_goes_by_the_devices_of_the_mesh(monkeypatch, platform, kind, channels, dtype, cached, windowed, chosen):
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: Devices(platform, kind))
    assert choose("auto", channels, jnp.dtype(dtype), cached, windowed) == chosen
    assert choose("xla", channels, jnp.dtype(dtype), cached, windowed) == "xla"


@pytest.mark.parametrize(
    ("platform", "kind", "implementation", "dtype", "words"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "splash", "bfloat16", "needs TPUs"),
        ("cpu", "cpu", "cudnn", "bfloat16", "needs NVIDIA GPUs"),
        ("gpu", "NVIDIA H100 80GB HBM3", "cudnn", "float32", "needs bfloat16"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, platform, kind, implementation, dtype, words):
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: Devices(platform, kind))
    with pytest.raises(ClaraError, match=words) as error:
        choose(implementation, 64, jnp.dtype(dtype), False, False)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.usefixtures("optimized", "uncached")
def test_a_step_for_tpus_holds_the_kernel_and_no_scores():
    """Compiled on this machine for a slice that is not there."""
    shapes = dataclasses.replace(planned.SHAPES, prompt_length=320)
    lowered = planned.lower("end_to_end", make_mesh(4, 2, devices=topology_devices("v5e:2x4")), shapes=shapes)
    text = lowered.compile().as_text()
    assert "tpu_custom_call" in text and "splash_mha_dkv_segmented" in text
    lengths = {320, 384}  # of the prompts, and of the blocks that hold them
    found = {shape for shape in re.findall(r"(?:f32|bf16|pred)\[([\d,]+)\]", text)}
    assert any(str(length) in shape.split(",") for shape in found for length in lengths)
    assert not [shape for shape in found if len(sizes := shape.split(",")) > 1 and {*map(int, sizes[-2:])} <= lengths]
