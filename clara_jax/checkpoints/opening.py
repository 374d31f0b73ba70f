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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.checkpoints.bundle import SCRATCH, Bundle
from clara_jax.checkpoints.description import Description
from clara_jax.checkpoints.locating import locate
from clara_jax.checkpoints.names import BASE_HINT, load_base
from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.formats.base import BaseModel, open_base
from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast
from clara_jax.input_pipeline.document_tokenizer import further_special_tokens
from clara_jax.input_pipeline.prompts import PROMPT_VERSION
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ROLES, ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, flatten, initialise_adapters, split, unflatten, within
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract, declare_base, initialise
from clara_jax.model.precision import resolve
from clara_jax.model.quantization import KERNEL_PARTS, NONE, quantize_kernel, quantized_kernels
from clara_jax.model.sharding import place, platform


def from_base(
    base: str | BaseModel,
    clara: ClaraConfig,
    mesh: jax.sharding.Mesh,
    precision: str = "bfloat16",
    remat: str = "none",
    seed: int = 0,
    quantization: str = NONE,
) -> Bundle:
    """Make fresh adapters on a base given by name, or opened (see `open_base`).

    Args:
      base: its name, or opened.
      clara: the method's numbers.
      mesh: of the devices.
      precision: one of `clara_jax.model.precision.CHOICES`.
      remat: see `ClaraModel`.
      seed: of the adapters.
      quantization: of the base's kernels, one of `clara_jax.model.quantization.CHOICES`.

    Raises:
      ClaraError: a base that cannot be opened, has no chat template, or does not fit the mesh.
    """
    opened = base if isinstance(base, BaseModel) else open_base(base)
    tokenizer = _added_tokens(opened.load_tokenizer(), clara)
    config = _model_config(opened.config, f"{opened.path}: config.json", tokenizer)
    model = ClaraModel(config, clara, resolve(precision, platform(mesh)), remat, quantization=quantization)
    declared = declare(config, clara, model.base_dtype, quantization)
    leaves = flatten({"base": abstract(declared["base"], mesh)})
    weights = unflatten(load_base(config, leaves, opened.tensors, opened.path))["base"]
    params = initialise_adapters(declared, weights, jax.random.key(seed), mesh)
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
    declared = declare(model.config, clara, model.base_dtype)
    params = initialise_adapters(declared, initialise(declared["base"], base_key, mesh), key, mesh)
    digest = hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()
    return Bundle(model, params, added, mesh, {"name": SCRATCH, "hash": digest, "config": config}, ("base",))


def fresh(bundle: Bundle, seed: int = 0) -> Bundle:
    """Return the model untrained, as a baseline: with fresh adapters and added rows.

    The base is fresh as well where it was made from scratch.
    """
    model = bundle.model
    base_key, key = jax.random.split(jax.random.key(seed))
    declared, base = declare(model.config, model.clara, model.base_dtype), bundle.params["base"]
    if "base" in bundle.base_overrides:
        base = initialise(declared["base"], base_key, bundle.mesh)
        leaves = abstract(declare_base(model.config, model.base_dtype, model.quantization), bundle.mesh)
        base = unflatten(_quantized(flatten(base), flatten(leaves)))
    params = initialise_adapters(declared, base, key, bundle.mesh)
    return dataclasses.replace(bundle, params=params, trained=(), history=())


def reset(bundle: Bundle, subtrees: Sequence[str], key: jax.Array) -> Bundle:
    """Return the model with some subtrees of its adapters and added rows as if no stage had trained them.

    They are fresh, drawn from the key; a query reasoner is the compressor's copy, from which it starts.

    Raises:
      ClaraError: a subtree that does not exist.
    """
    chosen, kept = split(bundle.params, subtrees, "reset")
    if not chosen:
        return bundle
    model = bundle.model
    declared = declare(model.config, model.clara, model.base_dtype)  # of the base, nothing is drawn
    drawn = flatten(initialise_adapters(declared, bundle.params["base"], key, bundle.mesh))
    leaves = kept | {path: drawn[path] for path in chosen}
    for path in chosen:
        if path.startswith("lora/query_reasoner/"):
            leaves[path] = jnp.copy(leaves[path.replace("query_reasoner", "compressor")])
    trained = tuple(name for name in bundle.trained if not any(within(name, subtree) for subtree in subtrees))
    return dataclasses.replace(bundle, params=unflatten(leaves), trained=trained)


def load(
    path: str | Path,
    mesh: jax.sharding.Mesh,
    base: str | None = None,
    precision: str | None = None,
    remat: str = "none",
    quantization: str | None = None,
) -> Bundle:
    """Load a model from a checkpoint of any format.

    Args:
      path: a training run's directory, one of its checkpoints, a checkpoint in the released format, folders that
        `clara_jax.checkpoints.exporting` wrote (PEFT, compact), the name of a model inside the package
        (`clara_jax.shipped`), or a Hub id (`clara_jax.checkpoints.locating`).
      mesh: of the devices.
      base: where the base lies, if not where the checkpoint says.
      precision: one of `clara_jax.model.precision.CHOICES`; default as trained (released checkpoints: "bfloat16").
      remat: see `ClaraModel`.
      quantization: of the base's kernels, one of `clara_jax.model.quantization.CHOICES`; default as trained.

    Raises:
      ClaraError: nothing there, damaged, made on another base, or of another shape; kernels of which the checkpoint has
        int8 alone are asked for without quantization.
    """
    folder, form = locate(path)

    # What the checkpoint says of its model, and the base that it was made on.
    about: Description = form.describe(folder)
    if about.note:
        print(about.note, file=sys.stderr)
    if about.prompt_version != PROMPT_VERSION:
        raise ClaraError(
            f"{about.path}: was trained with prompts of version {about.prompt_version}, this program has "
            f"{PROMPT_VERSION}"
        )
    opened = None if "base" in about.overrides else _open_base_of(about, base)
    if opened is not None and "hash" not in about.base:
        about = dataclasses.replace(about, base=_reference(opened))
    clara, tokenizer = _numbers_and_tokenizer(about, opened)
    if opened is None:
        config = _model_config(about.base["config"], str(about.source), tokenizer)
    else:
        config = _model_config(opened.config, f"{opened.path}: config.json", tokenizer)
    quantization = quantization or about.quantization
    precision = resolve(precision or about.precision, platform(mesh))
    model = ClaraModel(config, clara, precision, remat, quantization=quantization)

    # Its parameters, declared once: those that the checkpoint holds, and the others, which are the base's.
    overrides = tuple(name for name in about.overrides if not (config.tied and name == "base/lm_head"))
    kept = ("lora", "tokens", *overrides)
    declared = {
        each: abstract(declare(config, clara, model.base_dtype, each), mesh)
        for each in {about.quantization, quantization}  # usually one
    }
    stored, _ = split(declared[about.quantization], kept)
    wanted, rest = split(declared[quantization], kept)
    if quantization == NONE and quantized_kernels(stored):
        raise ClaraError(
            f"{about.path}: holds its base's kernels as int8, from which no others come back; open it with "
            "quantization int8 (--config.model.quantization=int8 in training)"
        )
    arrays = _quantized(form.load(about, stored), wanted)
    trained = about.trained
    if trained is None:
        roles = (role for role in ROLES if any(name.startswith(f"lora/{role}/") for name in arrays))
        trained = (*(f"lora/{role}" for role in roles), "tokens/memory")
    # A query reasoner that no stage has trained equals the compressor, and need not be stored.
    for name in [name for name in wanted if name not in arrays]:
        arrays[name] = jnp.copy(arrays[name.replace("query_reasoner", "compressor")])
    if opened is not None:
        arrays |= load_base(config, rest, opened.tensors, opened.path)
    ends = about.further_ends if opened is None else opened.end_ids
    return Bundle(model, unflatten(arrays), tokenizer, mesh, dict(about.base), overrides, trained, about.history, ends)


def _quantized(arrays: Mapping[str, jax.Array], leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return arrays by path, with kernels quantized that ``leaves`` declare so, one at a time on the host."""
    arrays = dict(arrays)
    for kernel in quantized_kernels(leaves):
        if kernel not in arrays:
            continue  # it is quantized already
        values, scales = (leaves[f"{kernel}/{part}"] for part in KERNEL_PARTS)
        wide = np.asarray(gather(arrays.pop(kernel)), np.float32)
        for part, array in quantize_kernel(wide, len(values.shape) - len(scales.shape)).items():
            arrays[f"{kernel}/{part}"] = place(array, leaves[f"{kernel}/{part}"].sharding)
    return arrays


def trained_precision(path: str | Path) -> str:
    """Return the precision in which a checkpoint says that it was trained, without opening its arrays.

    Raises:
      ClaraError: as `load`.
    """
    folder, form = locate(path)
    return form.describe(folder).precision


def _open_base_of(about: Description, base: str | None) -> BaseModel:
    """Open a checkpoint's base: the one given, or the one that it names, by a Hub id or a folder, perhaps within it.

    Raises:
      ClaraError: none is named; it cannot be opened; it has another content than the checkpoint says.
    """
    name = base or about.base["name"]
    if not isinstance(name, str) or not name:
        raise ClaraError(f'{about.source}: "{about.base_field}" names no base; give one {BASE_HINT}')
    # A base that was written along goes where the checkpoint goes, while its path says where both were written.
    along = about.path / Path(name).name
    if not base and os.path.isabs(name) and os.path.isfile(along / "config.json"):
        name = str(along.resolve())
    elif not base and os.path.isdir(about.path / name):
        name = str((about.path / name).resolve())
    elif not base and os.path.isabs(name) and not os.path.exists(name):
        raise ClaraError(
            f'{about.source}: "{about.base_field}" {reprlib.repr(name)} does not exist here; name the base {BASE_HINT}'
        )
    opened = open_base(name)
    if "hash" in about.base and opened.content_hash != about.base["hash"]:
        raise ClaraError(
            f"{about.path}: was trained on the base {about.base['name']} with hash {about.base['hash'][:12]}, but "
            f"{opened.path} has {opened.content_hash[:12]}; give the right base {BASE_HINT}"
        )
    return opened


def _numbers_and_tokenizer(about: Description, opened: BaseModel | None) -> tuple[ClaraConfig, ClaraTokenizer]:
    """Return the method's numbers and the tokenizer, which is stored or the base's with the added tokens.

    Raises:
      ClaraError: numbers that are none; a tokenizer that is damaged, or another than that of the training.
    """
    fields, base_tokenizer = about.clara, None
    if about.tokenizer is None:
        assert opened is not None  # a checkpoint with a base of its own has the tokenizer, too
        base_tokenizer = opened.load_tokenizer()
        if about.released_bos:
            fields = {**fields, "missing_bos": _released_missing_bos(base_tokenizer)}
    try:
        clara = ClaraConfig(**fields)
    except ClaraError as error:
        raise ClaraError(f'{about.source}: "clara": {error}') from None
    except TypeError as error:
        raise ClaraError(f'{about.source}: "clara" does not hold the method\'s numbers ({error})') from None
    if base_tokenizer is None:
        assert about.tokenizer is not None
        return clara, ClaraTokenizer.load(about.tokenizer)
    tokenizer = _added_tokens(base_tokenizer, clara)
    if about.tokenizer_hash not in (None, tokenizer.tokenizer_hash()):
        assert opened is not None
        raise ClaraError(
            f"{about.path}: was trained with another tokenizer than that of {opened.path} (its hash differs)"
        )
    return clara, tokenizer


def _released_missing_bos(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what stands for a missing bos or eos in the released code: the first special token without a role.

    The name of the choice is part of a tokenizer's hash: where both choices give the same tokens it stays what it was
    before there were two.
    """
    same_bos = tokenizer.bos_token is not None or not further_special_tokens(tokenizer)
    return "memory_token" if same_bos and tokenizer.eos_token is not None else "first_special"


def _reference(opened: BaseModel) -> dict[str, Any]:
    # A local path is made absolute, to be valid from any working directory.
    local = Path(os.path.expanduser(opened.name))
    name = str(local.resolve()) if local.exists() else opened.name
    return {"name": name, "hash": opened.content_hash, "config": dict(opened.config)}


def _model_config(fields: Mapping[str, Any], source: str, tokenizer: ClaraTokenizer) -> ModelConfig:
    """Return the base's configuration; its tables may be padded beyond the tokenizer, never shorter.

    Args:
      fields: content of ``config.json``.
      source: prefix of error messages.
      tokenizer: the base's, with the added tokens.

    Raises:
      ClaraError: a field that is not supported; a tokenizer with more tokens than the table has rows.
    """
    config = ModelConfig.from_hf(fields, source)
    if tokenizer.vocab_size > config.vocab_size:
        raise ClaraError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding table only {config.vocab_size} "
            "rows; they do not belong together"
        )
    return dataclasses.replace(config, vocab_size=tokenizer.vocab_size)


def _added_tokens(tokenizer: PreTrainedTokenizerFast, clara: ClaraConfig) -> ClaraTokenizer:
    return ClaraTokenizer(
        tokenizer,
        doc_max_length=clara.doc_max_length,
        memory_tokens=clara.memory_tokens,
        different_mem_tokens=clara.different_mem_tokens,
        missing_bos=clara.missing_bos,
        max_length=clara.max_length,
        memory_count=clara.memory_count,
    )
