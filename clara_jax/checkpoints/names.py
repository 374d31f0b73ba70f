"""Hugging Face and PEFT tensor names against the leaves of `clara_jax.model.declare`, in both directions.

Torch stores a linear map as [out, in]; here it is [in..., out...] with heads as axes of their own, stacked over layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import Map, declare_base, declare_lora, linear_units, map_leaves, shardings
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
    """The base parameters from Hugging Face tensors, one leaf at a time.

    Args:
      config: its ``vocab_size`` may be below the table's rows (tables padded beyond the tokenizer): the rest is left
        out.
      tensors: name -> array, as `open_base` gives them.
      dtype: what to store.

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
            size = config.head_channels if module.endswith(("q_norm", "k_norm")) else config.width
            return read(f"{prefix}{NORMS[module]}.weight", (size,))
        part, unit, kind, name = path.split("/")
        maps = linear_units(config)[part][unit]
        ins, rows = _sizes(maps)
        torch_name = f"{prefix}{PARTS[part]}.{unit}_proj.{'weight' if kind == 'kernel' else 'bias'}"
        total = sum(stop - start for start, stop in rows.values())
        array = read(torch_name, (total, ins) if kind == "kernel" else (total,))[slice(*rows[name])]
        return np.ascontiguousarray(array.T)

    def build(path: str, leaf) -> jax.Array:
        sharding = placed
        for name in path.split("/"):
            sharding = sharding[name]
        if path.startswith("layers/"):
            name = path.removeprefix("layers/")
            # Memory is asked for when the first layer has shown that the files are as large as the configuration says.
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
        return place(value, sharding)

    return map_leaves(build, declare_base(config, dtype))


def check_floating(array: np.ndarray, name: str, source: str) -> None:
    """Refuse what is no plain floating-point tensor: whole numbers and floats of one byte mean something only with the
    scales of some scheme, and none is known here.

    Raises:
      ClaraError: it is none; the file, the tensor and its dtype.
    """
    if str(array.dtype) not in FLOATING:
        raise ClaraError(
            f"{source}: tensor {name!r} is of {array.dtype}, which is quantised or no weight; use a model in "
            f"{', '.join(FLOATING)}"
        )


def _check_names(config: ModelConfig, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses tensors that the configuration does not call for: the model would compute something else with them.

    Frequency tables of the rotary embedding follow from the configuration. A head beside tied tables may repeat them.
    """
    known = {EMBEDDING, "model.norm.weight", *(() if config.tied else (HEAD,))}
    tree = declare_base(config, np.float32)["layers"]
    # Before anything as long as the configuration says is made: a layer that is there must be among its tensors.
    last = f"model.layers.{config.layers - 1}.input_layernorm.weight"
    if last not in tensors:
        raise ClaraError(f"{source}: tensor {last!r} is missing; the files do not fit the configuration")
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for module, name in NORMS.items():
            part, _, inner = module.partition("/")
            if inner in tree.get(part, {}) if inner else part in tree:
                known.add(f"{prefix}{name}.weight")
        for part, unit in _units(config):
            known.add(f"{prefix}{PARTS[part]}.{unit}_proj.weight")
            if "bias" in tree[part][unit]:
                known.add(f"{prefix}{PARTS[part]}.{unit}_proj.bias")
    for name in sorted(set(tensors) - known):
        if name.endswith(".inv_freq"):
            continue
        if name == HEAD and np.array_equal(*(tensors[x][: config.vocab_size] for x in (HEAD, EMBEDDING))):
            continue
        raise ClaraError(
            f"{source}: tensor {name!r} is one that config.json does not call for; the model would not be computed as "
            "it was made: set the field that it belongs to (attention_bias, tie_word_embeddings, num_hidden_layers), "
            "or take it out"
        )


def export_base(config: ModelConfig, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `load_base`, one tensor after the other: (Hugging Face name, array as it is stored)."""
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
        for part, unit in _units(config):
            maps, own = linear_units(config)[part][unit], layers[part][unit]
            ins, _ = _sizes(maps)
            name = f"{prefix}{PARTS[part]}.{unit}_proj"
            yield (
                f"{name}.weight",
                np.concatenate([np.asarray(own["kernel"][m][layer]).reshape(ins, -1) for m in maps], axis=1).T,
            )
            if "bias" in own:
                yield f"{name}.bias", np.concatenate([np.asarray(own["bias"][m][layer]).reshape(-1) for m in maps])


def load_lora(
    config: ModelConfig, rank: int, state: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, source: str = "adapter"
) -> dict[str, Any]:
    """One adapter from PEFT tensors ``...layers.3.self_attn.q_proj.lora_A[.name].weight``, A [R, in] and B [out, R].

    Raises:
      ClaraError: a missing, unexpected or misshapen tensor, by name.
    """
    found = {_plain_lora_name(name): array for name, array in state.items()}
    declared, placed = declare_lora(config, rank), shardings(declare_lora(config, rank), mesh)
    expected = {
        _lora_name(layer, part, unit, side)
        for layer in range(config.layers)
        for part, unit in _units(config)
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

    def read(layer: int, part: str, unit: str, side: str, shape: tuple[int, ...]) -> np.ndarray:
        name = _lora_name(layer, part, unit, side)
        check_floating(found[name], name, source)
        if found[name].shape != shape:
            raise ClaraError(
                f"{source}: LoRA tensor {name!r} has the shape {list(found[name].shape)} where {list(shape)} fits; "
                "is the base or lora_r another?"
            )
        return np.asarray(found[name], np.float32)

    def build(path: str, leaf) -> jax.Array:
        _, part, unit, side, *name = path.split("/")
        ins, rows = _sizes(linear_units(config)[part][unit])
        total = max(stop for _, stop in rows.values())

        def array(layer: int) -> np.ndarray:
            if side == "a":
                return read(layer, part, unit, "A", (rank, ins)).T.reshape(leaf.shape[1:])
            return read(layer, part, unit, "B", (total, rank))[slice(*rows[name[0]])].T.reshape(leaf.shape[1:])

        first = array(0)
        value = np.empty(leaf.shape, np.float32)
        value[0] = first
        for layer in range(1, config.layers):
            value[layer] = array(layer)
        sharding = placed
        for step in path.split("/"):
            sharding = sharding[step]
        return place(value, sharding)

    return map_leaves(build, declared)


def lora_modules(config: ModelConfig) -> list[str]:
    """The modules that have an adapter, as PEFT calls them."""
    return [f"{unit}_proj" for _, unit in _units(config)]


def export_lora(config: ModelConfig, adapter: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `load_lora`: an adapter (or its gradient) as float32 PEFT tensors by plain name."""
    state = {}
    for part, unit in _units(config):
        a, b = adapter["layers"][part][unit]["a"], adapter["layers"][part][unit]["b"]
        a = np.asarray(a, np.float32)
        b = [np.asarray(b[name], np.float32) for name in linear_units(config)[part][unit]]
        for layer in range(config.layers):
            rank = a.shape[-1]
            state[_lora_name(layer, part, unit, "A")] = a[layer].reshape(-1, rank).T
            state[_lora_name(layer, part, unit, "B")] = np.concatenate(
                [m[layer].reshape(rank, -1) for m in b], axis=1
            ).T
    return state


def _units(config: ModelConfig) -> list[tuple[str, str]]:
    return [(part, unit) for part, group in linear_units(config).items() for unit in group]


def _sizes(maps: Mapping[str, Map]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Input size of a unit, and which rows of its torch matrix belong to which map."""
    rows, start = {}, 0
    for name, linear in maps.items():
        size = int(np.prod([size for _, size, _ in linear.outputs]))
        rows[name], start = (start, start + size), start + size
    return int(np.prod([size for _, size, _ in next(iter(maps.values())).inputs])), rows


def _lora_name(layer: int, part: str, unit: str, side: str) -> str:
    return f"model.layers.{layer}.{PARTS[part]}.{unit}_proj.lora_{side}.weight"


def _plain_lora_name(name: str) -> str:
    """Without the prefixes of wrappers and without the adapter's name, which may or may not stand in the key."""
    head, marker, tail = name.rpartition(".lora_")
    if not marker or "model.layers." not in head:
        return name
    return f"{head[head.index('model.layers.') :]}.lora_{tail[0]}.weight"
