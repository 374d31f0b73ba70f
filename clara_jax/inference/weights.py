"""The weights that answers are written with: as they are trained, or made ready for reading them once a token.

"adapter" applies the generator's adapter beside the base and needs no memory of its own. "merged" adds it to a copy of
the base: fewer and larger products. "int8" rounds that copy to one byte a weight. `docs/inference.md` has what each
takes and gives.
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
from clara_jax.model.declare import linear_units
from clara_jax.model.quantize import Quantized, quantize

WEIGHTS = ("adapter", "merged", "int8")
_SHARE = 1 / 4  # of an accelerator's memory that a merged copy may take unasked


def check(weights: str) -> None:
    """Raises:
    ClaraError: an unknown name."""
    if weights not in WEIGHTS:
        raise ClaraError(f"weights: {weights!r} must be one of {', '.join(WEIGHTS)}")


def choose(model: ClaraModel, params: Any, mesh: jax.sharding.Mesh) -> str:
    """What is fastest and fits: "merged", except on devices of which the copy would take too much."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(own and "bytes_limit" in own for own in stats):
        return "merged"
    limit = min(own["bytes_limit"] for own in stats)
    sharded = sum(leaf.nbytes for leaf in jax.tree.leaves(params["base"]["layers"])) / mesh.devices.size
    return "merged" if sharded <= _SHARE * limit else "adapter"


def prepare(
    model: ClaraModel, params: Any, weights: str, mesh: jax.sharding.Mesh, alone: bool = False
) -> tuple[ClaraModel, Any]:
    """The model and the parameters to read prompts and write answers with.

    On CPUs, which multiply no bfloat16, a copy is kept in float32 and computed with in float32: XLA would widen every
    kernel anew for every token, which takes longer than all else. And out of an array of all layers XLA copies every
    kernel there for every token, and then reads the copy. For one row that costs most of the time, so "merged" has each
    layer's weights in arrays of their own then; for several rows, which take longer to multiply with, the copy is the
    faster of the two, and of bytes, which have to be widened anyway.

    Args:
      alone: answers are written one at a time.

    Returns:
      the model; parameters without the other roles' adapters, and with "adapter" no copy of anything.

    Raises:
      ClaraError: an unknown name.
    """
    check(weights)
    if weights == "adapter":
        return model, {**params, "lora": {"generator": params["lora"]["generator"]}}
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    if on_cpu:
        model = dataclasses.replace(model, precision="float32")
    rounded = weights == "int8"
    base = merge(model, params, "generator", mesh, model.dtype if on_cpu else None, rounded)
    with jax.set_mesh(mesh):
        for name in ("embed", "lm_head"):
            if name in base:
                dtype = model.dtype if on_cpu else base[name]["table"].dtype
                base[name] = {"table": _table(base[name]["table"], dtype=dtype, rounded=rounded)}
        if on_cpu and alone and not rounded:
            base["layers"] = _apart(base["layers"])
    return model, {**params, "base": base, "lora": {}}


def merge(
    model: ClaraModel,
    params: Any,
    role: str,
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype | None = None,
    rounded: bool = False,
) -> dict[str, Any]:
    """The base with a role's adapter added to its linear maps.

    Args:
      dtype: of the maps; default the base's.
      rounded: to one byte a weight (`clara_jax.model.quantize`).
    """
    base, adapter = params["base"], params["lora"][role]
    layers = dict(base["layers"])
    with jax.set_mesh(mesh):
        for part, group in linear_units(model.config).items():
            layers[part] = dict(layers[part])
            for unit, maps in group.items():
                own, low = dict(base["layers"][part][unit]), adapter["layers"][part][unit]
                own["kernel"] = {
                    name: _merge(
                        own["kernel"][name],
                        low["a"],
                        low["b"][name],
                        letters=(linear.input_letters, linear.output_letters),
                        scale=model.clara.lora_scale,
                        dtype=dtype,
                        rounded=rounded,
                    )
                    for name, linear in maps.items()
                }
                layers[part][unit] = own
    return {**base, "layers": layers}


@partial(jax.jit, static_argnames=("letters", "scale", "dtype", "rounded"))
def _merge(
    kernel: jax.Array,
    a: jax.Array,
    b: jax.Array,
    letters: tuple[str, str],
    scale: float,
    dtype: jnp.dtype | None,
    rounded: bool,
) -> jax.Array | Quantized:
    """kernel + scale · A B of all layers, summed in float32."""
    ins, outs = letters
    with jax.default_matmul_precision("highest"):
        product = jnp.einsum(f"L{ins}R,LR{outs}->L{ins}{outs}", a, b, out_sharding=jax.typeof(kernel).sharding)
    wide = kernel.astype(jnp.float32) + scale * product
    return quantize(wide, tuple(range(1, 1 + len(ins)))) if rounded else wide.astype(dtype or kernel.dtype)


@partial(jax.jit, static_argnames=("dtype", "rounded"))
def _table(table: jax.Array, dtype: jnp.dtype, rounded: bool) -> jax.Array | Quantized:
    return quantize(table, (1,)) if rounded else table.astype(dtype)


def _apart(layers: Any) -> tuple[Any, ...]:
    """One tree for each of the layers that are stacked in ``layers``."""
    count = len(jax.tree.leaves(layers)[0])
    one = jax.jit(partial(jax.lax.dynamic_index_in_dim, keepdims=False))  # a program for each shape, not each number
    return tuple(jax.tree.map(partial(one, index=jnp.int32(number)), layers) for number in range(count))


def size(params: Mapping[str, Any]) -> int:
    """Bytes that writing one token reads at least: all weights but an embedding table that is only looked up in."""
    base = params["base"]
    read = [base["layers"], base["final_norm"], params["lora"], base.get("lm_head", base["embed"])]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(read))
