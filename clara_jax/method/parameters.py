"""The parameters of a CLaRa model as one tree, and the choice of subtrees that a stage trains.

``{"base": ..., "lora": {"compressor", "query_reasoner", "generator"}, "tokens": {"memory", "markers"[, "output"][,
"map"]}}``. Of the tokens that are added to the base's vocabulary "memory" and "markers" (<ENC>, <SEP>, ...) are the
input rows, and "output" the rows of an untied LM head; "map" is the memory map ``{"scale", "center", "shift"}`` of a
model that has one. A subtree has a path, ``lora/generator`` or ``tokens/memory``; everything under it belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.prompts import MARKERS
from clara_jax.method.clara import AFFINE, ROLES, ClaraConfig
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import declare_added_rows, declare_affine, declare_base, declare_lora, initialise
from clara_jax.model.quantization import NONE

Params = Mapping[str, Any]
MAP = "tokens/map"  # what stages train by default, and a model may lack
# Subtrees that a document's memory depends on. Where a stage trains none of them, documents can be compressed once.
COMPRESSOR = ("base", "lora/compressor", "tokens/memory", "tokens/markers", MAP)


def declare(
    config: ModelConfig, clara: ClaraConfig, base_dtype: Any = jnp.bfloat16, quantization: str = NONE
) -> Params:
    """Declare all parameters; base_dtype and quantization are those of `ClaraModel`."""
    memory = clara.memory_tokens if clara.different_mem_tokens else 1
    tokens = declare_added_rows(config, memory, len(MARKERS))
    if clara.memory_map == AFFINE:
        tokens |= {"map": declare_affine(config.embed_dim)}
    return {
        "base": declare_base(config, base_dtype, quantization),
        "lora": dict.fromkeys(ROLES, declare_lora(config, clara.lora_rank)),
        "tokens": tokens,
    }


def initialise_adapters(declared: Params, base: Params, key: jax.Array, mesh: jax.sharding.Mesh) -> Params:
    """Return parameters with fresh adapters and added rows on a given base.

    The query reasoner starts as the compressor. Added rows are drawn around the mean of the base's table with its
    standard deviation per channel, so that a new token resembles those of the base.

    Args:
      declared: see `declare`.
      base: its parameters.
      key: PRNG key of the initial values.
      mesh: where they are made.
    """
    fresh = initialise({"lora": declared["lora"], "tokens": declared["tokens"]}, key, mesh)
    fresh["lora"]["query_reasoner"] = jax.tree.map(jnp.copy, fresh["lora"]["compressor"])

    @jax.jit
    def like(rows, table):
        table = table.astype(jnp.float32)
        unit = rows / 0.02  # declared as normal with the standard deviation 0.02
        return jax.reshard(jnp.mean(table, 0) + jnp.std(table, 0) * unit, jax.P(None, None))

    with jax.set_mesh(mesh):
        for name in [name for name in fresh["tokens"] if name != "map"]:
            rows = fresh["tokens"][name]
            fresh["tokens"][name] = like(rows, base["lm_head" if name == "output" else "embed"]["table"])
    return {"base": base, **fresh}


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Return the leaves by path: ``{"lora/generator/layers/attention/q/a": ...}``."""
    leaves: dict[str, Any] = {}
    for name, node in params.items():
        path = f"{prefix}{name}"
        leaves |= flatten(node, f"{path}/") if isinstance(node, Mapping) else {path: node}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of leaves by path, the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def split(params: Params, subtrees: Iterable[str], field: str = "trains") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the leaves under the named subtrees, and the rest, both as flat dicts by path.

    Args:
      params: the model's parameters.
      subtrees: their paths.
      field: of the configuration that names them, for error messages.

    Raises:
      ClaraError: a subtree that does not exist. `MAP` is valid for a model without a memory map, too.
    """
    leaves, subtrees = flatten(params), tuple(subtrees)
    for name in subtrees:
        if name != MAP and not any(within(path, name) for path in leaves):
            raise ClaraError(
                f"{field}: there is no subtree {name!r} in the parameters; known: base, lora/<role>, tokens/memory, "
                f"{MAP} and what lies below them"
            )
    chosen = {path: leaf for path, leaf in leaves.items() if any(within(path, name) for name in subtrees)}
    return chosen, {path: leaf for path, leaf in leaves.items() if path not in chosen}


def merge(chosen: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of two flat dicts, the inverse of `split`."""
    return unflatten({**rest, **chosen})


def overlap(one: str, other: str) -> bool:
    """Return whether two subtrees share a leaf: they are the same, or one lies in the other."""
    return within(one, other) or within(other, one)


def within(path: str, subtree: str) -> bool:
    """Return whether a path is that of a subtree, or lies in it."""
    return path == subtree or path.startswith(f"{subtree}/")
