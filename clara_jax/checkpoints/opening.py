"""Opening of models: made on a base or from scratch, or loaded from a checkpoint of any format, as a `Bundle`.

Training, the Python API and the commands all come through this file, so a checkpoint has one way in, and with
`Bundle.save` one way out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.compact import is_compact, read_compact
from clara_jax.checkpoints.integrity import read_metadata
from clara_jax.checkpoints.names import BASE_HINT, EMBEDDING, HEAD, load_base, load_lora
from clara_jax.checkpoints.peft_folders import MEMORY_MAP, is_peft, read_peft
from clara_jax.checkpoints.released import LICENCE_NOTE, is_released, read_released
from clara_jax.checkpoints.retention import latest_checkpoint
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.formats.base import BaseModel, end_tokens, open_base
from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast
from clara_jax.input_pipeline.document_tokenizer import further_special_tokens
from clara_jax.input_pipeline.prompts import MARKERS, PROMPT_VERSION
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import AFFINE, ROLES, ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, flatten, initialise_adapters, split, unflatten
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract, declare_affine, declare_base, initialise, shardings
from clara_jax.model.precision import PRECISIONS, resolve
from clara_jax.model.sharding import place, platform
from clara_jax.shipped import folder_of


def from_base(
    base: str,
    clara: ClaraConfig,
    mesh: jax.sharding.Mesh,
    precision: str = "bfloat16",
    remat: str = "none",
    seed: int = 0,
) -> Bundle:
    """Make fresh adapters on a base given by name (see `open_base`).

    Raises:
      ClaraError: a base that cannot be opened, has no chat template, or does not fit the mesh.
    """
    opened = open_base(base)
    tokenizer = _added_tokens(opened.load_tokenizer(), clara)
    precision = resolve(precision, platform(mesh))
    model = ClaraModel(_model_config(opened, tokenizer.vocab_size), clara, precision, remat)
    weights = load_base(model.config, opened.tensors, model.base_dtype, mesh, opened.path)
    params = initialise_adapters(model.config, clara, weights, jax.random.key(seed), mesh)
    return Bundle(model, params, tokenizer, mesh, _reference(opened), further_ends=opened.end_ids)


def from_scratch(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    clara: ClaraConfig,
    mesh: jax.sharding.Mesh,
    precision: str = "bfloat16",
    remat: str = "none",
    seed: int = 0,
) -> Bundle:
    """Make a fresh base with fresh adapters; its checkpoints hold the whole base.

    Args:
      config: a ``config.json``'s content; the vocabulary and its end token are the tokenizer's.
      tokenizer: with a chat template and an end token.
      clara: the method's numbers.
      mesh: of the devices.
      precision: one of `clara_jax.model.precision.CHOICES`.
      remat: see `ClaraModel`.
      seed: of all fresh parameters.

    Raises:
      ClaraError: a configuration that is not supported or does not fit the mesh.
    """
    added = _added_tokens(tokenizer, clara)
    config = dict(config) | {"vocab_size": added.vocab_size, "eos_token_id": added.eos_id}
    precision = resolve(precision, platform(mesh))
    model = ClaraModel(ModelConfig.from_hf(config, "the base from scratch"), clara, precision, remat)
    base_key, key = jax.random.split(jax.random.key(seed))
    base = initialise(declare_base(model.config, model.base_dtype), base_key, mesh)
    params = initialise_adapters(model.config, clara, base, key, mesh)
    digest = hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()
    return Bundle(model, params, added, mesh, {"name": "scratch", "hash": digest, "config": config}, ("base",))


def fresh(bundle: Bundle, seed: int = 0) -> Bundle:
    """Return the model untrained, as a baseline: with fresh adapters and added rows.

    The base is fresh as well where it was made from scratch.
    """
    model = bundle.model
    base_key, key = jax.random.split(jax.random.key(seed))
    base = bundle.params["base"]
    if "base" in bundle.base_overrides:
        base = initialise(declare_base(model.config, model.base_dtype), base_key, bundle.mesh)
    params = initialise_adapters(model.config, model.clara, base, key, bundle.mesh)
    return dataclasses.replace(bundle, params=params, trained=(), history=())


def load(
    path: str | Path,
    mesh: jax.sharding.Mesh,
    base: str | None = None,
    precision: str | None = None,
    remat: str = "none",
) -> Bundle:
    """Load a model from a checkpoint of any format.

    Args:
      path: a training run's directory, one of its checkpoints, a checkpoint in the released format, folders that
        `clara_jax.checkpoints.exporting` wrote (PEFT, compact), or the name of a model inside the package
        (`clara_jax.shipped`).
      mesh: of the devices.
      base: where the base lies, if not where the checkpoint says.
      precision: one of `clara_jax.model.precision.CHOICES`; default as trained (released checkpoints: "bfloat16").
      remat: see `ClaraModel`.

    Raises:
      ClaraError: nothing there, damaged, made on another base, or of another shape.
    """
    if not isinstance(path, str | os.PathLike):
        raise ClaraError(f"{path!r} is no path; give that of a directory")
    path, precision = folder_of(path) or Path(path), precision and resolve(precision, platform(mesh))
    if not os.path.isdir(path):  # also False of a string that cannot be a path
        raise ClaraError(
            f"{path}: no such directory; give a training run, one of its checkpoints, or a released CLaRa checkpoint"
        )
    if is_compact(path):
        return _load_compact(path, mesh, base, precision, remat)
    if is_released(path):
        return _load_released(path, mesh, base, precision or "bfloat16", remat)
    if is_peft(path):
        return _load_peft(path, mesh, base, precision, remat)
    return _load_run(path, mesh, base, precision, remat)


def _load_run(path: Path, mesh: jax.sharding.Mesh, base: str | None, precision: str | None, remat: str) -> Bundle:
    if not (path / "clara.json").is_file():
        path = latest_checkpoint(path)
    metadata = read_metadata(path)
    _check_prompts(path, metadata)
    clara = _clara_config(metadata["clara"], path / "clara.json")
    tokenizer = ClaraTokenizer.load(path / "tokenizer")
    reference, overrides = dict(metadata["base"]), tuple(metadata["own"])
    config = dataclasses.replace(
        ModelConfig.from_hf(reference["config"], str(path / "clara.json")), vocab_size=tokenizer.vocab_size
    )
    model = ClaraModel(config, clara, precision or metadata["precision"], remat)
    declared = declare(config, clara, jnp.dtype(PRECISIONS[metadata["precision"]].stored))
    stored, _ = split(abstract(declared, mesh), ("lora", "tokens", *overrides))
    # Other arrays, such as a training run's optimizer state, are not read.
    only = ("lora", "tokens", *({"base"} if overrides else ()))
    arrays = flatten(load_arrays(path, unflatten(stored), only))
    arrays = {
        name: leaf.astype(model.base_dtype) if name.startswith("base/") else leaf for name, leaf in arrays.items()
    }
    ends = end_tokens(metadata.get("ends"), f'{path / "clara.json"}: "ends"')
    if "base" not in overrides:
        opened = _open_same_base(path, base, reference)
        ends = opened.end_ids
        weights = load_base(config, opened.tensors, model.base_dtype, mesh, opened.path)
        arrays = flatten({"base": weights}) | arrays
    trained, history = tuple(metadata["trained"]), tuple(metadata["history"])
    return Bundle(model, unflatten(arrays), tokenizer, mesh, reference, overrides, trained, history, ends)


def _load_compact(path: Path, mesh: jax.sharding.Mesh, base: str | None, precision: str | None, remat: str) -> Bundle:
    about, leaves = read_compact(path)
    _check_prompts(path, about)
    opened = _open_same_base(path, base, about["base"])
    clara = _clara_config(about["clara"], path / "model.json")
    tokenizer = _added_tokens(opened.load_tokenizer(), clara)
    if tokenizer.tokenizer_hash() != about["tokenizer"]:
        raise ClaraError(f"{path}: was trained with another tokenizer than that of {opened.path} (its hash differs)")
    config = _model_config(opened, tokenizer.vocab_size)
    model = ClaraModel(config, clara, precision or resolve(about["precision"], platform(mesh)), remat)
    tree = declare(config, clara, model.base_dtype)
    declared, _ = split(tree, ("lora", "tokens"))
    placed = flatten(shardings(tree, mesh))
    # A query reasoner that no stage has trained equals the compressor, and is not stored.
    stored = {name: leaves.pop(name, None) for name in declared}
    for name in stored:
        if stored[name] is None and name.startswith("lora/query_reasoner/"):
            stored[name] = stored[name.replace("query_reasoner", "compressor")]
    complete: dict[str, np.ndarray] = {}
    for name, leaf in stored.items():
        if leaf is None or leaf.shape != declared[name].shape:
            found = "missing" if leaf is None else f"of the shape {list(leaf.shape)}"
            raise ClaraError(f"{path}: {name} is {found}, and must be {list(declared[name].shape)}")
        complete[name] = leaf
    if leaves:
        raise ClaraError(f"{path}: holds {next(iter(leaves))!r}, which this model does not have")
    weights = load_base(config, opened.tensors, model.base_dtype, mesh, opened.path)
    params = unflatten({name: place(leaf, placed[name]) for name, leaf in complete.items()}) | {"base": weights}
    trained, history = tuple(about["trained"]), tuple(about["history"])
    return Bundle(model, params, tokenizer, mesh, dict(about["base"]), (), trained, history, opened.end_ids)


def _check_prompts(path: Path, metadata: Mapping[str, Any]) -> None:
    if metadata["prompt_version"] != PROMPT_VERSION:
        raise ClaraError(
            f"{path}: was trained with prompts of version {metadata['prompt_version']}, this program has "
            f"{PROMPT_VERSION}"
        )


def _open_same_base(path: Path, base: str | None, reference: Mapping[str, Any]) -> BaseModel:
    """Open a checkpoint's base, or the one given in its place, which must have the same content."""
    opened = open_base(base or reference["name"])
    if opened.content_hash != reference["hash"]:
        raise ClaraError(
            f"{path}: was trained on the base {reference['name']} with hash {reference['hash'][:12]}, but "
            f"{opened.path} has {opened.content_hash[:12]}; give the right base {BASE_HINT}"
        )
    return opened


def _load_released(path: Path, mesh: jax.sharding.Mesh, base: str | None, precision: str, remat: str) -> Bundle:
    print(LICENCE_NOTE, file=sys.stderr)
    released = read_released(path)
    opened = open_base(base or _released_base(path, released.config))
    tokenizer = opened.load_tokenizer()
    clara = ClaraConfig(
        doc_max_length=released.config["doc_max_length"],
        compress_rate=released.config["compr_rate"],
        lora_rank=released.config["lora_r"],
        different_mem_tokens=bool(released.config.get("different_mem_tokens", True)),
        missing_bos=_released_missing_bos(tokenizer),
    )
    stage = f"released {released.config.get('training_stage', '')}".strip()
    trained = tuple(f"lora/{role}" for role in released.adapters) + ("tokens/memory",)
    parts = _Parts(clara, released.adapters, {EMBEDDING: released.embedding, HEAD: released.head}, trained, stage)
    return _assemble(path, parts, opened, tokenizer, mesh, precision, remat)


def _load_peft(path: Path, mesh: jax.sharding.Mesh, base: str | None, precision: str | None, remat: str) -> Bundle:
    about, adapters, tables = read_peft(path)
    name = about["base"]
    opened = open_base(base or (str(path / name) if os.path.isdir(path / name) else name))
    clara = _clara_config(about["clara"], path / "export.json")
    names = declare_affine(0) if clara.memory_map == AFFINE else ()
    memory_map = {name: tables.get(f"{MEMORY_MAP}{name}") for name in names}
    tables = {name: tables.get(name) for name in (EMBEDDING, HEAD)}
    parts = _Parts(clara, adapters, tables, tuple(about["trained"]), about["stage"], memory_map)
    return _assemble(path, parts, opened, opened.load_tokenizer(), mesh, precision or about["precision"], remat)


def _released_missing_bos(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what stands for a missing bos or eos in the released code: the first special token without a role.

    The name of the choice is part of a tokenizer's hash: where both choices give the same tokens it stays what it was
    before there were two.
    """
    complete = tokenizer.bos_token is not None and tokenizer.eos_token is not None
    return "memory_token" if complete or not further_special_tokens(tokenizer) else "first_special"


class _Parts(NamedTuple):
    """The contents of a checkpoint of another format: adapters as PEFT tensors by role, whole embedding tables."""

    clara: ClaraConfig
    adapters: Mapping[str, Mapping[str, np.ndarray]]
    tables: Mapping[str, np.ndarray | None]
    trained: tuple[str, ...]
    stage: str
    memory_map: Mapping[str, np.ndarray | None] = MappingProxyType({})


def _assemble(
    path: Path,
    parts: _Parts,
    opened: BaseModel,
    base_tokenizer: PreTrainedTokenizerFast,
    mesh: jax.sharding.Mesh,
    precision: str,
    remat: str,
) -> Bundle:
    clara = parts.clara
    tokenizer = _added_tokens(base_tokenizer, clara)
    config = _model_config(opened, tokenizer.vocab_size)
    model = ClaraModel(config, clara, precision, remat)
    rows = (tokenizer.total_vocab, config.embed_dim)
    for name, table in parts.tables.items():
        if table is None and (name == EMBEDDING or not config.tied):
            raise ClaraError(f"{path}: {name!r} is missing among its tables")
        if table is not None and table.shape != rows:
            raise ClaraError(
                f"{path}: {name!r} has the shape {list(table.shape)} where the base {opened.name} with its special "
                f"tokens needs {list(rows)}; "
                f"give the right base {BASE_HINT}"
            )
    weights = load_base(config, _Overlay(opened.tensors, parts.tables), model.base_dtype, mesh, opened.path)
    placed = shardings(declare(config, clara, model.base_dtype), mesh)
    lora = {
        role: load_lora(config, clara.lora_rank, parts.adapters[role], mesh, f"{path}: {role}")
        for role in ROLES
        if role in parts.adapters
    }
    for role in ("compressor", "generator"):
        if role not in lora:
            raise ClaraError(f"{path}: the adapter of the {role} is missing; a CLaRa checkpoint needs it")
    # Checkpoints before the end-to-end stage have no query reasoner: it starts as the compressor.
    if "query_reasoner" not in lora:
        lora["query_reasoner"] = jax.tree.map(jnp.copy, lora["compressor"])
    memory = list(dict.fromkeys(tokenizer.memory_ids))
    markers = [tokenizer.special_ids[name] for name in MARKERS]
    embedding, head = parts.tables[EMBEDDING], parts.tables[HEAD]
    assert embedding is not None  # refused above
    added = {"memory": embedding[memory], "markers": embedding[markers]}
    if not config.tied:
        assert head is not None  # refused above
        added["output"] = head[memory + markers]
    tokens: dict[str, Any] = {
        name: place(np.asarray(rows, np.float32), placed["tokens"][name]) for name, rows in added.items()
    }
    if parts.memory_map:
        tokens["map"] = _memory_map(path, parts.memory_map, placed["tokens"]["map"], config.embed_dim)
    overrides = ("base/embed",) if config.tied else ("base/embed", "base/lm_head")
    params = {"base": weights, "lora": lora, "tokens": tokens}
    history = ({"stage": parts.stage},)
    return Bundle(model, params, tokenizer, mesh, _reference(opened), overrides, parts.trained, history, opened.end_ids)


def _memory_map(
    path: Path, vectors: Mapping[str, np.ndarray | None], placed: Mapping[str, jax.NamedSharding], width: int
) -> dict[str, jax.Array]:
    for name, vector in vectors.items():
        if vector is None or vector.shape != (width,):
            found = "is missing" if vector is None else f"has the shape {list(vector.shape)}"
            raise ClaraError(f"{path}: the memory map's {name} {found}; it must be a vector of {width}")
    return {name: place(np.asarray(vector, np.float32), placed[name]) for name, vector in vectors.items()}


class _Overlay(Mapping[str, np.ndarray]):
    """Tensors of which some are replaced."""

    def __init__(self, below: Mapping[str, np.ndarray], above: Mapping[str, np.ndarray | None]):
        self.below, self.above = below, {name: array for name, array in above.items() if array is not None}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.above[name] if name in self.above else self.below[name]

    def __contains__(self, name: object) -> bool:
        return name in self.above or name in self.below

    def __iter__(self):
        return iter({**dict.fromkeys(self.below), **self.above})

    def __len__(self) -> int:
        return len(set(self.below) | set(self.above))


def _released_base(path: Path, config: Mapping[str, Any]) -> str:
    """Return the base that a released checkpoint names: a Hub id, or a folder relative to the checkpoint."""
    name = config.get("decoder_model_name")
    if not isinstance(name, str) or not name:
        raise ClaraError(f'{path / "config.json"}: "decoder_model_name" names no base; give one {BASE_HINT}')
    if os.path.isdir(path / name):
        return str((path / name).resolve())
    if Path(name).is_absolute():
        raise ClaraError(
            f'{path / "config.json"}: "decoder_model_name" {reprlib.repr(name)} does not exist here; name the '
            f"base {BASE_HINT}"
        )
    return name


def _clara_config(fields: Any, path: Path) -> ClaraConfig:
    """Check and return the method's numbers of a file."""
    try:
        return ClaraConfig(**fields)
    except ClaraError as error:
        raise ClaraError(f'{path}: "clara": {error}') from None
    except TypeError as error:
        raise ClaraError(f'{path}: "clara" does not hold the method\'s numbers ({error})') from None


def _reference(opened: BaseModel) -> dict[str, Any]:
    # A local path is made absolute, to be valid from any working directory.
    local = Path(os.path.expanduser(opened.name))
    name = str(local.resolve()) if local.exists() else opened.name
    return {"name": name, "hash": opened.content_hash, "config": dict(opened.config)}


def _model_config(opened: BaseModel, vocab_size: int) -> ModelConfig:
    """Return the base's configuration; its tables may be padded beyond the tokenizer, never shorter."""
    config = ModelConfig.from_hf(opened.config, f"{opened.path}: config.json")
    if vocab_size > config.vocab_size:
        raise ClaraError(
            f"{opened.path}: the tokenizer has {vocab_size} tokens, the embedding table only {config.vocab_size} "
            "rows; they do not belong together"
        )
    return dataclasses.replace(config, vocab_size=vocab_size)


def _added_tokens(tokenizer: PreTrainedTokenizerFast, clara: ClaraConfig) -> ClaraTokenizer:
    return ClaraTokenizer(
        tokenizer,
        doc_max_length=clara.doc_max_length,
        memory_tokens=clara.memory_tokens,
        different_mem_tokens=clara.different_mem_tokens,
        missing_bos=clara.missing_bos,
        max_length=clara.max_length,
    )
