"""The backbone as a flax module: fresh parameters are the declared ones, and it runs on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract, declare_base, declare_lora, initialise
from clara_jax.model.transformer import Transformer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 58}


@pytest.mark.parametrize("tied", [True, False])
def test_init_gives_the_declared_parameters(tied, mesh, mesh222):
    config = ModelConfig.from_hf({"model_type": "llama", "tie_word_embeddings": tied, **SIZES})
    backbone, ids = Transformer(config, dtype=jnp.float32), np.arange(12, dtype=np.int32).reshape(2, 6)
    for where in (mesh, mesh222):
        variables = backbone.init(jax.random.key(0), where)
        declared = abstract(declare_base(config, jnp.float32), where)
        found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), variables["params"])
        assert found == declared
    variables = backbone.init(jax.random.key(0), mesh)
    with jax.set_mesh(mesh):
        x = backbone.apply(variables, jnp.asarray(ids), method="embed")
        states, kv = backbone.apply(variables, x, jnp.ones(ids.shape, bool))
    assert states.shape == (2, 6, config.embed_dim) and kv is None and np.isfinite(states).all()
    other = backbone.init(jax.random.key(1), mesh)["params"]["embed"]["table"]
    assert np.abs(np.asarray(other) - np.asarray(variables["params"]["embed"]["table"])).max() > 0.01


def test_what_is_kept_is_not_computed_again(mesh):
    """Each choice of `remat` runs fewer products again than the one before; after `products` none of the large ones."""
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 64}
    config = ModelConfig.from_hf({"model_type": "llama", "tie_word_embeddings": True, **sizes})
    params = Transformer(config, dtype=jnp.float32).init(jax.random.key(0), mesh)
    adapter = initialise(declare_lora(config, 4), jax.random.key(1), mesh)
    flops = {}
    with jax.set_mesh(mesh):
        ids = jnp.asarray(np.arange(64, dtype=np.int32).reshape(2, 32) % 50)
        x = Transformer(config, dtype=jnp.float32).apply(params, ids, method="embed")
        for remat in ("full", "names", "mlp", "products", "none"):
            backbone = Transformer(config, dtype=jnp.float32, remat=remat, attention="xla")

            def loss(adapter, backbone=backbone):
                states, _ = backbone.apply(params | {"lora": adapter}, x, jnp.ones((2, 32), bool))
                return jnp.sum(states**2)

            flops[remat] = jax.jit(jax.grad(loss)).lower(adapter).compile().cost_analysis()["flops"]
    assert list(flops.values()) == sorted(flops.values(), reverse=True) and len({*flops.values()}) == 5, flops
    # Of the forward pass's products (a third of all, where kernels are frozen half) none runs again: what is left is
    # the adapters' first product and the scores of attention, which "xla" has no name for.
    assert flops["products"] < 1.1 * flops["none"] < 0.8 * flops["full"], flops
