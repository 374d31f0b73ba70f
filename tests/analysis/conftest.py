"""A tiny model whose roles differ, as if it had been trained."""

import dataclasses

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.checkpoints import opening
from clara_jax.method.clara import ClaraConfig
from tests.tiny import write_base

SIZES = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, max_length=256)


def make_bundle(folder, mesh, **base):
    """Fresh adapters over a random base; B made non-zero so that the roles differ."""
    bundle = opening.from_base(str(write_base(folder, **base)), SIZES, mesh, "float32")
    adapters = bundle.params["lora"]
    lora = {
        role: jax.tree.map(
            lambda x, n=number: x + 0.02 * np.cos(np.arange(x.size) + n).reshape(x.shape).astype("f4"), adapter
        )
        for number, (role, adapter) in enumerate(adapters.items())
    }
    lora = jax.device_put(lora, jax.tree.map(lambda x: x.sharding, adapters))
    trained = ("lora/compressor", "lora/generator", "lora/query_reasoner", "tokens/memory")
    return dataclasses.replace(bundle, params={**bundle.params, "lora": lora}, trained=trained)


@pytest.fixture(scope="package")
def clara(tmp_path_factory, mesh):
    return Clara(make_bundle(tmp_path_factory.mktemp("base"), mesh), batch_size=4)
