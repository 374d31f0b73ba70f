"""Conversion between Hugging Face or PEFT tensors and the leaves of `clara_jax.model.declare`, in both directions.

Torch stores a linear map as [out, in]; here it is [in..., out...] with separate axes for heads, stacked over layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ROLES
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import Projection, ProjectionGroup, projection_groups
from clara_jax.model.quantization import (
    KERNEL_PARTS,
    SCALES,
    VALUES,
    is_quantized,
    quantize_kernel,
    quantized_kernels,
    wide_kernel,
)
from clara_jax.model.sharding import place

Leaves = Mapping[str, jax.ShapeDtypeStruct]  # declared leaves by path, each with its sharding
Groups = Mapping[str, Mapping[str, ProjectionGroup]]

BASE_HINT = "(base=... in Python, --config.model.base=... in training)"

FLOATING = ("float64", "float32", "float16", "bfloat16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EMBED, _LM_HEAD = "base/embed/table", "base/lm_head/table"
BASE_TABLES = ("base/embed", "base/lm_head")  # subtrees of the base that a checkpoint with whole tables holds
MEMORY_MAP = "memory_map."  # prefix of the names of its vectors
PARTS = {"attention": "self_attn", "mlp": "mlp"}
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
}


def load_base(
    config: ModelConfig, leaves: Leaves, tensors: Mapping[str, np.ndarray], source: str = "weights"
) -> dict[str, jax.Array]:
    """Load leaves of the base from Hugging Face tensors, one at a time, onto their devices.

    Args:
      config: its ``vocab_size`` may be below the table's rows (tables padded beyond the tokenizer): the rest is left
        out.
      leaves: those that are wanted, by path: "base/layers/mlp/up/kernel/up", or `KERNEL_PARTS` of a quantized one.
      tensors: name -> array, see `open_base`.
      source: prefix of error messages.

    Raises:
      ClaraError: a missing tensor or one of another shape, by name; one that the configuration does not call for.
    """
    groups, names = projection_groups(config), frozenset(tensors)
    _check_names(config, groups, tensors, names, source)

    def read(name: str, shape: tuple[int, ...], rows: int | None = None) -> np.ndarray:
        if name not in names:
            raise ClaraError(f"{source}: tensor {name!r} is missing; the files do not fit the configuration")
        array = np.asarray(tensors[name])
        check_floating({name: array}, source)
        if rows is not None and array.ndim == 2 and array.shape[0] >= rows:
            array = array[:rows]
        if array.shape != shape:
            raise ClaraError(
                f"{source}: tensor {name!r} has the shape {list(array.shape)} where the configuration asks for "
                f"{list(shape)}"
            )
        return array

    def layer_tensor(path: str, layer: int) -> np.ndarray:
        prefix = f"model.layers.{layer}."
        module, _, leaf = path.rpartition("/")
        if leaf == "scale":
            size = config.head_dim if module.endswith(("q_norm", "k_norm")) else config.embed_dim
            return read(f"{prefix}{NORMS[module]}.weight", (size,))
        part, group, kind, name = path.split("/")
        ins, rows = _sizes(groups[part][group])
        torch_name = f"{prefix}{PARTS[part]}.{group}_proj.{'weight' if kind == 'kernel' else 'bias'}"
        total = sum(stop - start for start, stop in rows.values())
        array = read(torch_name, (total, ins) if kind == "kernel" else (total,))[slice(*rows[name])]
        return np.ascontiguousarray(array.T)

    def whole(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path.removeprefix("base/")
        if name.startswith("layers/"):
            return _stacked(leaf, lambda layer: layer_tensor(name.removeprefix("layers/"), layer))
        if name == "final_norm/scale":
            return read("model.norm.weight", leaf.shape).astype(leaf.dtype)
        return read({_EMBED: EMBEDDING, _LM_HEAD: HEAD}[path], leaf.shape, rows=config.vocab_size).astype(leaf.dtype)

    def quantized(kernel: str) -> dict[str, np.ndarray]:
        shape, name = leaves[f"{kernel}/{VALUES}"].shape, kernel.removeprefix("base/layers/")
        inputs = len(shape) - len(leaves[f"{kernel}/{SCALES}"].shape)
        # One layer at a time: the kernel is not in memory as it is in the files.
        layers = [
            quantize_kernel(layer_tensor(name, layer).reshape(1, *shape[1:]), inputs) for layer in range(config.layers)
        ]
        return {f"{kernel}/{part}": np.concatenate([layer[part] for layer in layers]) for part in KERNEL_PARTS}

    arrays: dict[str, jax.Array] = {}
    for kernel in quantized_kernels(leaves):
        arrays |= {path: place(array, leaves[path].sharding) for path, array in quantized(kernel).items()}
    plain = {path: leaf for path, leaf in leaves.items() if path not in arrays}
    return arrays | {path: place(whole(path, leaf), leaf.sharding) for path, leaf in plain.items()}


def _stacked(leaf: jax.ShapeDtypeStruct, layer: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return a leaf of all layers from the arrays of each, in the leaf's dtype."""
    # Memory is allocated only when the first layer has shown that the files are as large as declared.
    first = layer(0).reshape(leaf.shape[1:]).astype(leaf.dtype)
    value = np.empty(leaf.shape, leaf.dtype)
    value[0] = first
    for number in range(1, leaf.shape[0]):
        value[number] = layer(number).reshape(leaf.shape[1:]).astype(leaf.dtype)
    return value


def check_floating(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Refuse tensors that are not of a plain floating-point dtype.

    Integers and one-byte floats have a meaning only with the scales of a quantization scheme; none is supported here.

    Raises:
      ClaraError: one is not; the message has the file, the tensor and its dtype.
    """
    for name, array in tensors.items():
        if str(array.dtype) not in FLOATING:
            raise ClaraError(
                f"{source}: tensor {name!r} is of {array.dtype}, which is quantised or no weight; use a model in "
                f"{', '.join(FLOATING)}"
            )


def _check_names(
    config: ModelConfig, groups: Groups, tensors: Mapping[str, np.ndarray], names: frozenset[str], source: str
) -> None:
    """Refuse tensors that the configuration does not call for: the model would compute something else without them.

    Frequency tables of the rotary embedding follow from the configuration. A head beside tied tables may repeat them.
    """
    known = {EMBEDDING, "model.norm.weight", *(() if config.tied else (HEAD,))}
    # Before anything of the configured length is made: the last layer must be among the tensors.
    last = f"model.layers.{config.layers - 1}.input_layernorm.weight"
    if last not in names:
        raise ClaraError(f"{source}: tensor {last!r} is missing; the files do not fit the configuration")
    norms = [name for module, name in NORMS.items() if config.qk_norm or not module.startswith("attention/")]
    modules = [f"{name}.weight" for name in norms]
    for part, group, projections in _groups(groups):
        modules.append(f"{PARTS[part]}.{group}_proj.weight")
        if any(projection.bias for projection in projections.values()):
            modules.append(f"{PARTS[part]}.{group}_proj.bias")
    known |= {f"model.layers.{layer}.{module}" for layer in range(config.layers) for module in modules}
    for name in sorted(names - known):
        if name.endswith(".inv_freq"):
            continue
        if name == HEAD and _same_rows(tensors[HEAD], tensors[EMBEDDING], config.vocab_size):
            continue
        raise ClaraError(_uncalled_for(source, name))


def _same_rows(head: np.ndarray, embedding: np.ndarray, rows: int) -> bool:
    return np.array_equal(head[:rows], embedding[:rows])


def _uncalled_for(source: str, name: str) -> str:
    return (
        f"{source}: tensor {name!r} is one that config.json does not call for; the model would not be computed as "
        "it was made: set the field that it belongs to (attention_bias, tie_word_embeddings, num_hidden_layers), "
        "or take it out"
    )


def export_base(config: ModelConfig, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, array in the stored dtype) of every tensor; the inverse of `load_base`.

    Quantized kernels are yielded as the float32 that they stand for.
    """
    for name, path in ((EMBEDDING, "embed"), (HEAD, "lm_head")):
        if path in base:
            yield name, np.asarray(base[path]["table"])
    yield "model.norm.weight", np.asarray(base["final_norm"]["scale"])
    layers, groups = base["layers"], projection_groups(config)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for module, name in NORMS.items():
            part, _, inner = module.partition("/")
            node = layers.get(part, {}).get(inner) if inner else layers.get(part)
            if node is not None:
                yield f"{prefix}{name}.weight", np.asarray(node["scale"][layer])
        for part, group, projections in _groups(groups):
            leaves = layers[part][group]
            ins, _ = _sizes(projections)
            name = f"{prefix}{PARTS[part]}.{group}_proj"
            kernels = [_kernel(leaves["kernel"][m], layer).reshape(ins, -1) for m in projections]
            yield f"{name}.weight", np.concatenate(kernels, axis=1).T
            if "bias" in leaves:
                biases = [np.asarray(leaves["bias"][m][layer]).reshape(-1) for m in projections]
                yield f"{name}.bias", np.concatenate(biases)


def _kernel(kernel: Any, layer: int) -> np.ndarray:
    """Return one layer of a stacked kernel, which may be quantized."""
    if is_quantized(kernel):
        return np.asarray(wide_kernel({part: array[layer : layer + 1] for part, array in kernel.items()}))[0]
    return np.asarray(kernel[layer])


def load_adapters(
    leaves: Leaves,
    adapters: Mapping[str, Mapping[str, np.ndarray]],
    tables: Mapping[str, np.ndarray],
    path: Path,
    base: str,
) -> dict[str, jax.Array]:
    """Load adapters and whole embedding tables, as other programs have them, one leaf at a time onto their devices.

    The added tokens' rows stand at the tables' ends: those of the memory tokens, then those of the markers.

    Args:
      leaves: all that such a checkpoint may hold, by path: adapters, added rows, memory map, the base's tables.
      adapters: PEFT tensors by role; the query reasoner's may be absent.
      tables: `EMBEDDING` and, where untied, `HEAD`, [V + added, E]; the memory map's vectors by `MEMORY_MAP`.
      path: of the checkpoint, for error messages.
      base: name of the base, for error messages.

    Raises:
      ClaraError: a tensor that is missing or misshapen, by name; a missing adapter.
    """
    arrays, embedding, memory = {}, leaves[_EMBED], leaves["tokens/memory"].shape[0]
    vocab, width = embedding.shape
    rows = {"tokens/memory": slice(vocab, vocab + memory), "tokens/markers": slice(vocab + memory, None)}
    within = {
        EMBEDDING: {_EMBED: slice(vocab)} | rows,
        HEAD: {_LM_HEAD: slice(vocab), "tokens/output": slice(vocab, None)},
    }
    total = vocab + memory + leaves["tokens/markers"].shape[0]
    for name, parts in within.items():
        table, held = tables.get(name), [leaf for leaf in parts if leaf in leaves]
        if table is None:
            if held:
                raise ClaraError(f"{path}: {name!r} is missing among its tables")
            continue
        if table.shape != (total, width):
            raise ClaraError(
                f"{path}: {name!r} has the shape {list(table.shape)} where the base {base} with its special "
                f"tokens needs {[total, width]}; give the right base {BASE_HINT}"
            )
        check_floating({name: table}, str(path))
        if not held and not _same_rows(table, tables[EMBEDDING], vocab):
            raise ClaraError(_uncalled_for(str(path), name))
        for leaf in held:
            arrays[leaf] = place(table[parts[leaf]].astype(leaves[leaf].dtype), leaves[leaf].sharding)
    for role in ROLES:
        of_role = {name: leaf for name, leaf in leaves.items() if name.startswith(f"lora/{role}/")}
        if role in adapters:
            arrays |= _load_lora(of_role, adapters[role], f"{path}: {role}")
        elif role != "query_reasoner":
            raise ClaraError(f"{path}: the adapter of the {role} is missing; a CLaRa checkpoint needs it")
    for name in [name for name in leaves if name.startswith("tokens/map/")]:
        vector = tables.get(f"{MEMORY_MAP}{name.rpartition('/')[2]}")
        if vector is None or vector.shape != (width,):
            found = "is missing" if vector is None else f"has the shape {list(vector.shape)}"
            raise ClaraError(
                f"{path}: the memory map's {name.rpartition('/')[2]} {found}; it must be a vector of {width}"
            )
        arrays[name] = place(np.asarray(vector, np.float32), leaves[name].sharding)
    return arrays


def _load_lora(leaves: Leaves, state: Mapping[str, np.ndarray], source: str) -> dict[str, jax.Array]:
    """Load one adapter from PEFT tensors, A [R, in] and B [out, R].

    Their names are ``...layers.3.self_attn.q_proj.lora_A[.name].weight``.

    Raises:
      ClaraError: a missing, unexpected or misshapen tensor, by name.
    """
    found = {_plain_lora_name(name): array for name, array in state.items()}
    # A group's A is [L, in..., R]; its B, [L, R, out...] for each projection, follow each other in one torch matrix.
    matrices: dict[tuple[str, str, str], list[str]] = {}
    for path in leaves:  # such as "lora/generator/layers/attention/qkv/b/q"
        part, group, side = path.split("/")[3:6]
        matrices.setdefault((part, group, side), []).append(path)
    layers = range(next(iter(leaves.values())).shape[0])
    expected = {_lora_name(layer, *matrix) for matrix in matrices for layer in layers}
    for name in sorted(found.keys() - expected):
        if ".lora_A." not in name and ".lora_B." not in name:
            raise ClaraError(
                f"{source}: tensor {name!r} is none of LoRA's matrices and would be left out; take it out of the "
                "adapter, or merge what it changes into the base"
            )
    for name in sorted(found.keys() ^ expected):
        why = "is missing" if name in expected else "does not belong to this base"
        raise ClaraError(f"{source}: LoRA tensor {name!r} {why}; give the right base {BASE_HINT}")

    def read(name: str, shape: tuple[int, int]) -> np.ndarray:
        check_floating({name: found[name]}, source)
        if found[name].shape != shape:
            raise ClaraError(
                f"{source}: LoRA tensor {name!r} has the shape {list(found[name].shape)} where {list(shape)} fits; "
                "is the base or lora_r another?"
            )
        return found[name]

    def whole(matrix: tuple[str, str, str], paths: list[str], index: int) -> np.ndarray:
        shapes, is_a = [leaves[path].shape for path in paths], matrix[2] == "a"
        rows = [shape[-1] if is_a else math.prod(shape[2:]) for shape in shapes]
        size = (sum(rows), math.prod(shapes[0][1:-1]) if is_a else shapes[0][1])
        its_rows = slice(sum(rows[:index]), sum(rows[: index + 1]))
        return _stacked(leaves[paths[index]], lambda layer: read(_lora_name(layer, *matrix), size)[its_rows].T)

    return {
        path: place(whole(matrix, paths, index), leaves[path].sharding)
        for matrix, paths in matrices.items()
        for index, path in enumerate(paths)
    }


def lora_modules(config: ModelConfig) -> list[str]:
    """Return PEFT's names of the modules that have an adapter."""
    return [f"{group}_proj" for _, group, _ in _groups(projection_groups(config))]


def export_lora(config: ModelConfig, adapter: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return an adapter (or its gradient) as float32 PEFT tensors by plain name; the inverse of `load_adapters`."""
    state = {}
    for part, group, projections in _groups(projection_groups(config)):
        a, b = adapter["layers"][part][group]["a"], adapter["layers"][part][group]["b"]
        a = np.asarray(a, np.float32)
        b = [np.asarray(b[name], np.float32) for name in projections]
        for layer in range(config.layers):
            rank = a.shape[-1]
            state[_lora_name(layer, part, group, "a")] = a[layer].reshape(-1, rank).T
            state[_lora_name(layer, part, group, "b")] = np.concatenate(
                [m[layer].reshape(rank, -1) for m in b], axis=1
            ).T
    return state


def _groups(groups: Groups) -> list[tuple[str, str, ProjectionGroup]]:
    return [(part, name, group) for part, named in groups.items() for name, group in named.items()]


def _sizes(group: Mapping[str, Projection]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the input size of a projection group, and each projection's rows (start, stop) in the torch matrix."""
    rows, start = {}, 0
    for name, projection in group.items():
        size = int(np.prod([size for _, size, _ in projection.outputs]))
        rows[name], start = (start, start + size), start + size
    return int(np.prod([size for _, size, _ in next(iter(group.values())).inputs])), rows


def _lora_name(layer: int, part: str, group: str, side: str) -> str:
    return f"model.layers.{layer}.{PARTS[part]}.{group}_proj.lora_{side.upper()}.weight"


def _plain_lora_name(name: str) -> str:
    """Remove the prefixes of wrappers and the adapter's name, which the key may or may not have."""
    head, marker, tail = name.rpartition(".lora_")
    if not marker or "model.layers." not in head:
        return name
    return f"{head[head.index('model.layers.') :]}.lora_{tail[0]}.weight"
