"""The weights used for generation: as they are trained, or prepared for being read once per token.

"adapter" applies the generator's adapter beside the base and needs no further memory. "merged" adds it to a copy of the
base: fewer and larger products. "merged-bfloat16" and "merged-float32" also set the dtype of the copy; "merged" uses
that of the base, where a CPU can read it fast. `docs/inference.md` has the costs and gains of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraModel
from clara_jax.method.merging import merge_adapter
from clara_jax.model.output_major import OutputMajor
from clara_jax.model.precision import has_instructions

_STORED = {"merged": None, "merged-bfloat16": jnp.bfloat16, "merged-float32": jnp.float32}
WEIGHTS = ("adapter", *_STORED)
_SHARE = 1 / 4  # of an accelerator's memory that a merged copy may take unasked


def check(weights: str, here: bool = True) -> None:
    """Raise an error for a name that is not in `WEIGHTS`.

    Args:
      weights: the name.
      here: whether answers are written here, and not by another server.

    Raises:
      ClaraError: an unknown name, or any where answers are not written here.
    """
    if not here:
        raise ClaraError("weights: mean nothing where another server (generator) writes the answers")
    if weights == "int8":
        raise ClaraError(
            "weights: 'int8' is gone, it was never faster than float32; 'merged-bfloat16' reads half of float32's bytes"
        )
    if weights not in WEIGHTS:
        raise ClaraError(f"weights: {weights!r} must be one of {', '.join(WEIGHTS)}")


def choose(model: ClaraModel, params: Any, mesh: jax.sharding.Mesh) -> str:
    """Return the fastest kind that fits: "merged", except on devices whose memory the copy would take too much of."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(of_device and "bytes_limit" in of_device for of_device in stats):
        return "merged"
    limit = min(of_device["bytes_limit"] for of_device in stats)
    base, width = params["base"], params["base"]["embed"]["table"].dtype.itemsize  # of the copy, quantized base or not
    sharded = sum(width * leaf.size for leaf in jax.tree.leaves(base["layers"])) / mesh.devices.size
    return "merged" if sharded <= _SHARE * limit else "adapter"


def prepare(
    model: ClaraModel, params: Any, weights: str, mesh: jax.sharding.Mesh, single_row: bool = False
) -> tuple[ClaraModel, Any]:
    """Return the model and the parameters for prefill and decoding.

    On CPUs activations are float32 whatever the copy is stored in, and layers are unstacked: out of an array of all
    layers XLA would copy every kernel for every token, and then read the copy. Kernels are stored output-major
    (`clara_jax.model.output_major`), so that XLA's products read them in place, except for a single row in float32,
    whose product needs the usual order. "merged" stores bfloat16 in float32 for a single row, unless the processor
    multiplies bfloat16: without such instructions a row takes longer to multiply than to read.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters, all roles.
      weights: one of `WEIGHTS`.
      mesh: that the parameters are on.
      single_row: answers are generated one at a time.

    Returns:
      the model; parameters without the other roles' adapters, and with "adapter" no copy of anything.

    Raises:
      ClaraError: an unknown name.
    """
    check(weights)
    if weights == "adapter":
        return model, {**params, "lora": {"generator": params["lora"]["generator"]}}
    dtype = jnp.dtype(_STORED[weights] or params["base"]["embed"]["table"].dtype)
    if any(device.platform != "cpu" for device in mesh.devices.flat):
        return model, {**params, "base": merge_adapter(model, params, "generator", mesh, dtype), "lora": {}}
    if single_row and weights == "merged" and not has_instructions():
        dtype = jnp.dtype(jnp.float32)
    model = dataclasses.replace(model, precision="float32")
    base = merge_adapter(model, params, "generator", mesh, dtype, output_major=not single_row or dtype != jnp.float32)
    with jax.set_mesh(mesh):
        for name in ("embed", "lm_head"):
            if name in base:
                base[name] = {"table": OutputMajor(base[name]["table"].astype(dtype))}
        base["layers"] = unstack_layers(base["layers"])
    return model, {**params, "base": base, "lora": {}}


def unstack_layers(layers: Any) -> tuple[Any, ...]:
    """Return a tree for each of the layers that are stacked in ``layers``."""
    count = len(jax.tree.leaves(layers)[0])
    one = jax.jit(partial(jax.lax.dynamic_index_in_dim, keepdims=False))  # a program for each shape, not each number
    return tuple(jax.tree.map(partial(one, index=jnp.int32(number)), layers) for number in range(count))


def size(params: Mapping[str, Any]) -> int:
    """Return the bytes that decoding one token reads at least: all weights but an embedding table that is gathered."""
    base = params["base"]
    read = [base["layers"], base["final_norm"], params["lora"], base.get("lm_head", base["embed"])]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(read))
