"""A role's adapter added to the base's linear maps: kernel + scale · A B."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.deprecation import renamed_attributes
from clara_jax.method.clara import ClaraModel
from clara_jax.model.declare import projection_groups
from clara_jax.model.output_major import OutputMajor
from clara_jax.model.quantization import wide_kernel


def merge_adapter(
    model: ClaraModel,
    params: Any,
    role: str,
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype | None = None,
    output_major: bool = False,
) -> dict[str, Any]:
    """Return the base with a role's adapter added to its projections.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      role: whose adapter.
      mesh: that the parameters are on.
      dtype: of the projections; default the base's. A quantized base is dequantized.
      output_major: with each kernel's outputs first (`clara_jax.model.output_major`).
    """
    base, adapter = params["base"], params["lora"][role]
    layers = dict(base["layers"])
    with jax.set_mesh(mesh):
        for part, groups in projection_groups(model.config).items():
            layers[part] = dict(layers[part])
            for group_name, group in groups.items():
                merged, low = dict(base["layers"][part][group_name]), adapter["layers"][part][group_name]
                merged["kernel"] = {
                    name: _merge(
                        merged["kernel"][name],
                        low["a"],
                        low["b"][name],
                        letters=(linear.input_letters, linear.output_letters),
                        scale=model.clara.lora_scale,
                        dtype=dtype or base["embed"]["table"].dtype,
                        output_major=output_major,
                    )
                    for name, linear in group.items()
                }
                layers[part][group_name] = merged
    return {**base, "layers": layers}


@partial(jax.jit, static_argnames=("letters", "scale", "dtype", "output_major"))
def _merge(
    kernel: jax.Array | Mapping[str, jax.Array],
    a: jax.Array,
    b: jax.Array,
    letters: tuple[str, str],
    scale: float,
    dtype: jnp.dtype,
    output_major: bool,
) -> jax.Array | OutputMajor:
    """Return kernel + scale · A B of all layers, summed in float32."""
    ins, outs = letters
    wide = wide_kernel(kernel)
    with jax.default_matmul_precision("highest"):
        product = jnp.einsum(f"L{ins}R,LR{outs}->L{ins}{outs}", a, b, out_sharding=jax.typeof(wide).sharding)
    merged = (wide + scale * product).astype(dtype)
    return OutputMajor(jnp.einsum(f"L{ins}{outs}->L{outs}{ins}", merged)) if output_major else merged


__getattr__ = renamed_attributes(__name__, {"merge": "merge_adapter"})
