"""A CLaRa model on a tiny base of which no adapter is like another, for the tests of what other programs read."""

import dataclasses
import json

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from clara_jax.checkpoints import names, opening
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import flatten, unflatten
from clara_jax.model.declare import abstract, declare_base
from clara_jax.model.sharding import make_mesh
from tests import tiny

SMALL = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4)
TRAINED = ("lora/compressor", "lora/query_reasoner", "lora/generator", "tokens/memory")


def bundle(base, clara=SMALL):
    """On a base model's directory."""
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    return drawn(opening.from_base(str(base), clara, mesh, "float32"))


def drawn(fresh):
    """A fresh model with other adapters, as if it were trained."""
    rng = np.random.default_rng(3)

    def draw(leaf):
        return jax.device_put(0.3 * rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding)

    params = {**fresh.params, "lora": jax.tree.map(draw, fresh.params["lora"])}
    return dataclasses.replace(fresh, params=params, trained=TRAINED, history=({"stage": "end_to_end"},))


def load_base(config, dtype, mesh, tensors):
    """A whole base, as a nested dict."""
    leaves = flatten({"base": abstract(declare_base(config, dtype), mesh)})
    return unflatten(names.load_base(config, leaves, tensors, "base"))["base"]


def write_fused_base(folder):
    """The tiny base with the fused tensors of Phi-3."""
    tiny.write_base(folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for whole, parts, prefix in (("qkv", "qkv", attention), ("gate_up", ("gate", "up"), mlp)):
            names = [f"{prefix}{part}_proj.weight" for part in parts]
            tensors[f"{prefix}{whole}_proj.weight"] = np.concatenate([tensors.pop(name) for name in names])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "phi3", "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
