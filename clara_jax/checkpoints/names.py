"""Conversion between Hugging Face or PEFT tensors and the leaves of `clara_jax.model.declare`, in both directions.

Torch stores a linear map as [out, in]; here it is [in..., out...] with separate axes for heads, stacked over layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import Projection, declare_base, declare_lora, map_leaves, projection_groups, shardings
from clara_jax.model.sharding import place

BASE_HINT = "(base=... in Python, --config.model.base=... in training)"

FLOATING = ("float64", "float32", "float16", "bfloat16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PARTS = {"attention": "self_attn", "mlp": "mlp"}
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
}


def load_base(
    config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: Any, mesh: jax.sharding.Mesh, source: str = "weights"
) -> dict[str, Any]:
    """Load the base parameters from Hugging Face tensors, one leaf at a time.

    Args:
      config: its ``vocab_size`` may be below the table's rows (tables padded beyond the tokenizer): the rest is left
        out.
      tensors: name -> array, see `open_base`.
      dtype: of the stored parameters.
      mesh: where they are placed.
      source: prefix of error messages.

    Raises:
      ClaraError: a missing tensor or one of another shape, by name.
    """
    placed = shardings(declare_base(config, dtype), mesh)

    def read(name: str, shape: tuple[int, ...], rows: int | None = None) -> np.ndarray:
        if name not in tensors:
            raise ClaraError(f"{source}: tensor {name!r} is missing; the files do not fit the configuration")
        array = np.asarray(tensors[name])
        check_floating(array, name, source)
        if rows is not None and array.ndim == 2 and array.shape[0] >= rows:
            array = array[:rows]
        if array.shape != shape:
            raise ClaraError(
                f"{source}: tensor {name!r} has the shape {list(array.shape)} where the configuration asks for "
                f"{list(shape)}"
            )
        return array

    _check_names(config, tensors, source)

    def layer_tensor(path: str, layer: int) -> np.ndarray:
        prefix = f"model.layers.{layer}."
        module, _, leaf = path.rpartition("/")
        if leaf == "scale":
            size = config.head_dim if module.endswith(("q_norm", "k_norm")) else config.embed_dim
            return read(f"{prefix}{NORMS[module]}.weight", (size,))
        part, group, kind, name = path.split("/")
        ins, rows = _sizes(projection_groups(config)[part][group])
        torch_name = f"{prefix}{PARTS[part]}.{group}_proj.{'weight' if kind == 'kernel' else 'bias'}"
        total = sum(stop - start for start, stop in rows.values())
        array = read(torch_name, (total, ins) if kind == "kernel" else (total,))[slice(*rows[name])]
        return np.ascontiguousarray(array.T)

    def build(path: str, leaf) -> jax.Array:
        if path.startswith("layers/"):
            name = path.removeprefix("layers/")
            # Memory is allocated only when the first layer has shown that the files are as large as configured.
            first = layer_tensor(name, 0).reshape(leaf.shape[1:]).astype(dtype)
            value = np.empty(leaf.shape, dtype)
            value[0] = first
            for layer in range(1, config.layers):
                value[layer] = layer_tensor(name, layer).reshape(leaf.shape[1:]).astype(dtype)
        elif path == "final_norm/scale":
            value = read("model.norm.weight", leaf.shape).astype(dtype)
        else:
            name = {"embed/table": EMBEDDING, "lm_head/table": HEAD}[path]
            value = read(name, leaf.shape, rows=config.vocab_size).astype(dtype)
        return place(value, _node(placed, path))

    return map_leaves(build, declare_base(config, dtype))


def check_floating(array: np.ndarray, name: str, source: str) -> None:
    """Refuse a tensor that is not of a plain floating-point dtype.

    Integers and one-byte floats have a meaning only with the scales of a quantization scheme; none is supported here.

    Raises:
      ClaraError: it is not; the message has the file, the tensor and its dtype.
    """
    if str(array.dtype) not in FLOATING:
        raise ClaraError(
            f"{source}: tensor {name!r} is of {array.dtype}, which is quantised or no weight; use a model in "
            f"{', '.join(FLOATING)}"
        )


def _check_names(config: ModelConfig, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Refuse tensors that the configuration does not call for: the model would compute something else without them.

    Frequency tables of the rotary embedding follow from the configuration. A head beside tied tables may repeat them.
    """
    known = {EMBEDDING, "model.norm.weight", *(() if config.tied else (HEAD,))}
    tree = declare_base(config, np.float32)["layers"]
    # Before anything of the configured length is made: the last layer must be among the tensors.
    last = f"model.layers.{config.layers - 1}.input_layernorm.weight"
    if last not in tensors:
        raise ClaraError(f"{source}: tensor {last!r} is missing; the files do not fit the configuration")
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for module, name in NORMS.items():
            part, _, inner = module.partition("/")
            if inner in tree.get(part, {}) if inner else part in tree:
                known.add(f"{prefix}{name}.weight")
        for part, group in _groups(config):
            known.add(f"{prefix}{PARTS[part]}.{group}_proj.weight")
            if "bias" in tree[part][group]:
                known.add(f"{prefix}{PARTS[part]}.{group}_proj.bias")
    for name in sorted(set(tensors) - known):
        if name.endswith(".inv_freq"):
            continue
        if name == HEAD and np.array_equal(tensors[HEAD][: config.vocab_size], tensors[EMBEDDING][: config.vocab_size]):
            continue
        raise ClaraError(
            f"{source}: tensor {name!r} is one that config.json does not call for; the model would not be computed as "
            "it was made: set the field that it belongs to (attention_bias, tie_word_embeddings, num_hidden_layers), "
            "or take it out"
        )


def export_base(config: ModelConfig, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, array in the stored dtype) of every tensor; the inverse of `load_base`."""
    for name, path in ((EMBEDDING, "embed"), (HEAD, "lm_head")):
        if path in base:
            yield name, np.asarray(base[path]["table"])
    yield "model.norm.weight", np.asarray(base["final_norm"]["scale"])
    layers = base["layers"]
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for module, name in NORMS.items():
            part, _, inner = module.partition("/")
            node = layers.get(part, {}).get(inner) if inner else layers.get(part)
            if node is not None:
                yield f"{prefix}{name}.weight", np.asarray(node["scale"][layer])
        for part, group in _groups(config):
            projections, leaves = projection_groups(config)[part][group], layers[part][group]
            ins, _ = _sizes(projections)
            name = f"{prefix}{PARTS[part]}.{group}_proj"
            kernels = [np.asarray(leaves["kernel"][m][layer]).reshape(ins, -1) for m in projections]
            yield f"{name}.weight", np.concatenate(kernels, axis=1).T
            if "bias" in leaves:
                biases = [np.asarray(leaves["bias"][m][layer]).reshape(-1) for m in projections]
                yield f"{name}.bias", np.concatenate(biases)


def load_lora(
    config: ModelConfig, rank: int, state: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, source: str = "adapter"
) -> dict[str, Any]:
    """Load one adapter from PEFT tensors, A [R, in] and B [out, R].

    Their names are ``...layers.3.self_attn.q_proj.lora_A[.name].weight``.

    Raises:
      ClaraError: a missing, unexpected or misshapen tensor, by name.
    """
    found = {_plain_lora_name(name): array for name, array in state.items()}
    declared, placed = declare_lora(config, rank), shardings(declare_lora(config, rank), mesh)
    expected = {
        _lora_name(layer, part, group, side)
        for layer in range(config.layers)
        for part, group in _groups(config)
        for side in "AB"
    }
    for name in sorted(found.keys() - expected):
        if ".lora_A." not in name and ".lora_B." not in name:
            raise ClaraError(
                f"{source}: tensor {name!r} is none of LoRA's matrices and would be left out; take it out of the "
                "adapter, or merge what it changes into the base"
            )
    for name in sorted(found.keys() ^ expected):
        why = "is missing" if name in expected else "does not belong to this base"
        raise ClaraError(f"{source}: LoRA tensor {name!r} {why}; give the right base {BASE_HINT}")

    def read(layer: int, part: str, group: str, side: str, shape: tuple[int, ...]) -> np.ndarray:
        name = _lora_name(layer, part, group, side)
        check_floating(found[name], name, source)
        if found[name].shape != shape:
            raise ClaraError(
                f"{source}: LoRA tensor {name!r} has the shape {list(found[name].shape)} where {list(shape)} fits; "
                "is the base or lora_r another?"
            )
        return np.asarray(found[name], np.float32)

    def build(path: str, leaf) -> jax.Array:
        _, part, group, side, *name = path.split("/")
        ins, rows = _sizes(projection_groups(config)[part][group])
        total = max(stop for _, stop in rows.values())

        def array(layer: int) -> np.ndarray:
            if side == "a":
                return read(layer, part, group, "A", (rank, ins)).T.reshape(leaf.shape[1:])
            return read(layer, part, group, "B", (total, rank))[slice(*rows[name[0]])].T.reshape(leaf.shape[1:])

        first = array(0)
        value = np.empty(leaf.shape, np.float32)
        value[0] = first
        for layer in range(1, config.layers):
            value[layer] = array(layer)
        return place(value, _node(placed, path))

    return map_leaves(build, declared)


def lora_modules(config: ModelConfig) -> list[str]:
    """Return PEFT's names of the modules that have an adapter."""
    return [f"{group}_proj" for _, group in _groups(config)]


def export_lora(config: ModelConfig, adapter: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return an adapter (or its gradient) as float32 PEFT tensors by plain name; the inverse of `load_lora`."""
    state = {}
    for part, group in _groups(config):
        a, b = adapter["layers"][part][group]["a"], adapter["layers"][part][group]["b"]
        a = np.asarray(a, np.float32)
        b = [np.asarray(b[name], np.float32) for name in projection_groups(config)[part][group]]
        for layer in range(config.layers):
            rank = a.shape[-1]
            state[_lora_name(layer, part, group, "A")] = a[layer].reshape(-1, rank).T
            state[_lora_name(layer, part, group, "B")] = np.concatenate(
                [m[layer].reshape(rank, -1) for m in b], axis=1
            ).T
    return state


def _groups(config: ModelConfig) -> list[tuple[str, str]]:
    return [(part, group) for part, groups in projection_groups(config).items() for group in groups]


def _sizes(group: Mapping[str, Projection]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the input size of a projection group, and each projection's rows (start, stop) in the torch matrix."""
    rows, start = {}, 0
    for name, projection in group.items():
        size = int(np.prod([size for _, size, _ in projection.outputs]))
        rows[name], start = (start, start + size), start + size
    return int(np.prod([size for _, size, _ in next(iter(group.values())).inputs])), rows


def _node(tree: Mapping[str, Any], path: str) -> Any:
    """Return the node of a nested dict at a path such as "layers/mlp"."""
    node: Any = tree
    for name in path.split("/"):
        node = node[name]
    return node


def _lora_name(layer: int, part: str, group: str, side: str) -> str:
    return f"model.layers.{layer}.{PARTS[part]}.{group}_proj.lora_{side}.weight"


def _plain_lora_name(name: str) -> str:
    """Remove the prefixes of wrappers and the adapter's name, which the key may or may not have."""
    head, marker, tail = name.rpartition(".lora_")
    if not marker or "model.layers." not in head:
        return name
    return f"{head[head.index('model.layers.') :]}.lora_{tail[0]}.weight"
