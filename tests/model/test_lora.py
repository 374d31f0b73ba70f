"""Dropout masks: the right rate, no pattern over channels, tokens, layers and examples, the same wherever they are."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import projection_groups
from clara_jax.model.lora import SITES, SITES_OF_LAYER, Dropout


def kept(rate, shape=(6, 40), channels=(24, 8), site=3, seed=0, positions=None):
    keys = jax.random.split(jax.random.key(seed), (shape[0], 1))
    positions = jnp.broadcast_to(jnp.arange(shape[1]), shape) if positions is None else positions
    dropout = Dropout(keys, jnp.ones(shape, jnp.int32), positions, rate)
    return np.asarray(dropout(jnp.ones((*shape, *channels)), jnp.int32(site)))


def test_rate_and_scale():
    for rate in (0.1, 0.5):
        values = kept(rate)
        assert set(np.unique(values)) == {0, np.float32(1 / (1 - rate))}
        dropped = (values == 0).mean()
        assert abs(dropped - rate) < 4 * np.sqrt(rate * (1 - rate) / values.size)


def test_no_pattern():
    """Every share of dropped entries along every axis, and every pair of neighbours, lies where chance puts it."""
    dropped = (kept(0.5) == 0).reshape(6, 40, 192).astype(float)
    for axes in ((1, 2), (0, 2), (0, 1)):
        share = dropped.mean(axes)
        count = dropped.size / share.size
        assert np.all(np.abs(share - 0.5) < 5 * np.sqrt(0.25 / count))
    for axis in range(3):
        agree = (np.diff(dropped, axis=axis) == 0).mean()
        assert abs(agree - 0.5) < 0.02
    for other in (kept(0.5, site=4), kept(0.5, site=19), kept(0.5, seed=1)):
        assert abs(((other == 0).reshape(dropped.shape) == dropped).mean() - 0.5) < 0.02


def test_a_mask_follows_its_token():
    """Shifted by padding, or alone in its batch, a token keeps its mask."""
    shifted = jnp.maximum(jnp.arange(45) - 5, 0)
    there = kept(0.3, shape=(6, 45), positions=jnp.broadcast_to(shifted, (6, 45)))
    np.testing.assert_array_equal(there[:, 5:], kept(0.3))


def test_bits_are_pinned():
    """A run that goes on after an update of the package sees the masks that it would have seen."""
    dropped = np.packbits(kept(0.5, site=2 * SITES_OF_LAYER + SITES["gate"]) == 0)
    assert hashlib.sha256(dropped.tobytes()).hexdigest()[:16] == "8904e168bbf34d06"


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_groups_of_a_layer_have_different_sites(architecture):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ModelConfig.from_hf({"model_type": architecture, "vocab_size": 58, **sizes})
    sites = [SITES[name] for groups in projection_groups(config).values() for name in groups]
    assert len(set(sites)) == len(sites) and max(sites) < SITES_OF_LAYER
