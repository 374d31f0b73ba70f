"""One declaration per parameter, from which its shape, dtype, initial value and sharding all derive.

A declaration tree is a nested dict of :class:`Leaf`. `abstract` gives restore targets and shapes for ahead-of-time
compilation, each with its placement, `initialise` the values. No other place in the package defines a parameter's
shape.

Layers are stacked: every leaf under ``layers`` has a leading axis L over which the backbone scans.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

from clara_jax.model.config import ModelConfig
from clara_jax.model.quantization import INT8, NONE, SCALES, VALUES
from clara_jax.model.sharding import shardings

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter.

    Attributes:
      shape: its shape, the stacked layer axis included.
      axes: the logical name of each axis (see `clara_jax.model.sharding`), None where it is never sharded.
      dtype: the dtype it is stored in.
      init: "normal", "ones", "uniform" (LoRA's A) or "zeros" (LoRA's B, biases).
      scale: standard deviation of "normal", bound of "uniform".
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: Any = jnp.float32
    init: str = "normal"
    scale: float = 0.02

    def value(self, key: Key[jax.Array, ""]) -> jax.Array:
        """Return an initial value, drawn with a PRNG key."""
        match self.init:
            case "normal":
                return (self.scale * jax.random.normal(key, self.shape, jnp.float32)).astype(self.dtype)
            case "uniform":
                return jax.random.uniform(key, self.shape, jnp.float32, -self.scale, self.scale).astype(self.dtype)
            case "zeros":
                return jnp.zeros(self.shape, self.dtype)
            case "ones":
                return jnp.ones(self.shape, self.dtype)
        raise ValueError(f"unknown init {self.init!r}")


@dataclasses.dataclass(frozen=True)
class Projection:
    """A linear map of a block. Axes are (letter of the legend, size, logical name) triples."""

    inputs: tuple[tuple[str, int, str | None], ...]
    outputs: tuple[tuple[str, int, str | None], ...]
    bias: bool = False

    @property
    def input_letters(self) -> str:
        """Letters of the input axes, for einsums."""
        return "".join(letter for letter, _, _ in self.inputs)

    @property
    def output_letters(self) -> str:
        """Letters of the output axes, for einsums."""
        return "".join(letter for letter, _, _ in self.outputs)


ProjectionGroup = dict[str, Projection]  # projections by name that share their input and one LoRA matrix A


def projection_groups(config: ModelConfig) -> dict[str, dict[str, ProjectionGroup]]:
    """Return every linear map of a block as ``part -> group -> name -> projection``.

    A group is a single projection, except where the base fuses q, k, v and gate, up into one matrix (Phi-3): their
    kernels are separate here, so that each is sharded by its heads.
    """
    embed, mlp = (("E", config.embed_dim, "embed"),), (("F", config.mlp_dim, "mlp"),)
    queries = (("H", config.heads, "heads"), ("C", config.head_dim, None))
    keys = (("G", config.kv_heads, "kv_heads"), ("C", config.head_dim, None))
    q, k = Projection(embed, queries, config.qkv_bias), Projection(embed, keys, config.qkv_bias)
    wide = Projection(embed, mlp, config.mlp_bias)
    out = {"o": {"o": Projection(queries, embed, config.out_bias)}}
    down = {"down": {"down": Projection(mlp, embed, config.mlp_bias)}}
    if config.fused:
        return {
            "attention": {"qkv": {"q": q, "k": k, "v": k}} | out,
            "mlp": {"gate_up": {"gate": wide, "up": wide}} | down,
        }
    single = {"q": {"q": q}, "k": {"k": k}, "v": {"v": k}}
    return {"attention": single | out, "mlp": {"gate": {"gate": wide}, "up": {"up": wide}} | down}


def declare_base(config: ModelConfig, dtype: Any = jnp.bfloat16, quantization: str = NONE) -> dict[str, Any]:
    """Declare the base model: embedding table [V, E], stacked blocks, final norm, and the LM head if untied.

    With the quantization "int8" each kernel is a pair of leaves (`clara_jax.model.quantization`), which have no initial
    values; all else is as without.

    Initial values are for a base from scratch: kernels keep the scale of their input, those that write to the residual
    stream are smaller by 1/√(2L), for there are 2L of them (GPT-2), and the tables are scaled by 1/√E.
    """
    stack = config.layers

    def norm(size: int, stacked: bool = True) -> Leaf:
        return Leaf(((stack,) if stacked else ()) + (size,), ((None,) if stacked else ()) + (None,), dtype, "ones")

    def leaves_of(group: ProjectionGroup) -> dict[str, dict[str, Any]]:
        leaves: dict[str, dict[str, Any]] = {"kernel": {}}
        for name, m in group.items():
            _, in_sizes, in_axes = zip(*m.inputs, strict=True)
            _, out_sizes, out_axes = zip(*m.outputs, strict=True)
            shape, axes = (stack, *in_sizes, *out_sizes), (None, *in_axes, *out_axes)
            writes = (2 * stack) ** -0.5 if "E" in m.output_letters else 1.0
            leaves["kernel"][name] = Leaf(shape, axes, dtype, scale=writes * math.prod(in_sizes) ** -0.5)
            # Sharded as the projection's output, which is whole along the embedding axis.
            of_outputs = (None, *(None if axis == "embed" else axis for axis in out_axes))
            if quantization == INT8:
                leaves["kernel"][name] = {
                    VALUES: Leaf(shape, axes, jnp.int8, "zeros"),
                    SCALES: Leaf((stack, *out_sizes), of_outputs, jnp.float32, "zeros"),
                }
            if m.bias:
                leaves.setdefault("bias", {})[name] = Leaf((stack, *out_sizes), of_outputs, dtype, "zeros")
        return leaves

    layers: dict[str, Any] = {
        part: {name: leaves_of(group) for name, group in groups.items()}
        for part, groups in projection_groups(config).items()
    }
    layers["attention_norm"], layers["mlp_norm"] = {"scale": norm(config.embed_dim)}, {"scale": norm(config.embed_dim)}
    if config.qk_norm:
        layers["attention"]["q_norm"] = {"scale": norm(config.head_dim)}
        layers["attention"]["k_norm"] = {"scale": norm(config.head_dim)}
    # Measured on the synthetic corpus: with the usual 0.02 the model needs hundreds of steps more to use memories.
    table = Leaf((config.vocab_size, config.embed_dim), ("vocab", "embed"), dtype, scale=2.4 * config.embed_dim**-0.5)
    tree = {"embed": {"table": table}, "layers": layers, "final_norm": {"scale": norm(config.embed_dim, stacked=False)}}
    if not config.tied:
        tree["lm_head"] = {"table": table}
    return tree


def declare_lora(config: ModelConfig, rank: int) -> dict[str, Any]:
    """Declare an adapter, float32: A [L, in..., R] for each of `projection_groups`, B [L, R, out...] per projection.

    A is uniform in ±1/√in and B zero, so a fresh adapter leaves the base unchanged (Hu et al. 2021).
    """
    tree: dict[str, Any] = {}
    for part, groups in projection_groups(config).items():
        tree[part] = {}
        for group_name, group in groups.items():
            _, sizes, axes = zip(*next(iter(group.values())).inputs, strict=True)
            a = Leaf((config.layers, *sizes, rank), (None, *axes, None), init="uniform", scale=math.prod(sizes) ** -0.5)
            b = {}
            for name, m in group.items():
                _, out_sizes, out_axes = zip(*m.outputs, strict=True)
                b[name] = Leaf((config.layers, rank, *out_sizes), (None, None, *out_axes), init="zeros")
            tree[part][group_name] = {"a": a, "b": b}
    return {"layers": tree}


def declare_added_rows(config: ModelConfig, memory: int, markers: int) -> dict[str, Any]:
    """Declare the rows of the tokens that are added to the base's vocabulary, float32.

    Rows of memory tokens are trained, those of markers are fixed; an untied LM head has output rows for all of them.
    """
    tree: dict[str, Any] = {
        "memory": Leaf((memory, config.embed_dim), (None, None)),
        "markers": Leaf((markers, config.embed_dim), (None, None)),
    }
    if not config.tied:
        tree["output"] = Leaf((memory + markers, config.embed_dim), (None, None))
    return tree


def declare_affine(size: int) -> dict[str, Any]:
    """Declare an affine map of E channels, ``scale * (x - center) + shift``, float32, initially the identity."""
    return {
        "scale": Leaf((size,), (None,), init="ones"),
        "center": Leaf((size,), (None,), init="zeros"),
        "shift": Leaf((size,), (None,), init="zeros"),
    }


def map_leaves(function: Callable[[str, Leaf], Any], tree: Tree, path: str = "") -> dict[str, Any]:
    """Return the tree of ``function(path, leaf)``; paths look like ``layers/attention/q/kernel``."""
    return {
        name: function(f"{path}{name}", node)
        if isinstance(node, Leaf)
        else map_leaves(function, node, f"{path}{name}/")
        for name, node in tree.items()
    }


def abstract(tree: Tree, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return a `jax.ShapeDtypeStruct` with a sharding for every leaf: restore targets, shapes for compilation.

    Raises:
      ClaraError: a mesh that does not divide a leaf's axis, by name.
    """
    axes: dict[str, Any] = {}
    map_leaves(lambda path, leaf: axes.update({path: (leaf.shape, leaf.axes)}), tree)
    placed = shardings(axes, mesh)
    return map_leaves(lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path]), tree)


def initialise(tree: Tree, key: Key[jax.Array, ""], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return initial values, created on the mesh; each depends on the key and the leaf's path and shape alone."""
    paths = map_leaves(lambda path, _: path, tree)
    hashes = np.array([zlib.crc32(path.encode()) for path in jax.tree.leaves(paths)], np.uint32)
    # On the host, so that each of several processes can pass them to a program for the devices of all.
    data = np.asarray(jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)))
    keys = jax.tree.unflatten(jax.tree.structure(paths), list(data))
    generator = jax.random.key_impl(key)
    with jax.set_mesh(mesh):
        return jax.tree.map(
            lambda leaf, like, data: _maker(leaf, like.sharding, generator)(data), tree, abstract(tree, mesh), keys
        )


@functools.lru_cache(256)
def _maker(leaf: Leaf, placed: jax.NamedSharding, generator: Any) -> Callable[[np.ndarray], jax.Array]:
    """Return a program that initialises one kind of leaf.

    A model repeats few kinds, and compiling a random generator takes a tenth of a second: one program for all leaves
    would compile a generator for each of them.
    """
    return jax.jit(lambda data: leaf.value(jax.random.wrap_key_data(data, impl=generator)), out_shardings=placed)
