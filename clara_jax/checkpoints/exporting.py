"""Exports of a CLaRa model: PEFT adapters, the released format, one merged language model, a compact copy.

An export is read back and compared, number by number, before it gets its name; one that differs is removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from clara_jax.checkpoints import compact, peft_folders, released
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.names import EMBEDDING, HEAD, MEMORY_MAP, export_base, export_lora, lora_modules
from clara_jax.checkpoints.peft_folders import TABLES
from clara_jax.distributed import gather
from clara_jax.errors import ClaraError, warn_line
from clara_jax.files import folder_when_whole
from clara_jax.formats.base import SMOLLM2
from clara_jax.formats.hugging_face import write_config, write_tensors
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.input_pipeline.prompts import MARKERS, PROMPT_VERSION
from clara_jax.memory_count import FIXED
from clara_jax.method.clara import END, ROLES, STATE
from clara_jax.method.merging import merge_adapter
from clara_jax.method.parameters import split
from clara_jax.model.quantization import NONE

FORMATS = ("peft", "released", "merged", "compact")
DTYPES = ("float32", "bfloat16")
TOP_K = 5  # documents that the released code reads where nothing says how many
BASE = "base"  # folder of a base model that others cannot find by a name


def export_peft(bundle: Bundle, directory: str | Path, dtype: str = "float32", base_name: str | None = None) -> None:
    """Write PEFT adapter folders, one per role (see `clara_jax.checkpoints.peft_folders`).

    Args:
      bundle: the model.
      directory: a new one.
      dtype: of adapters and tables; float32 loses nothing.
      base_name: the location of the base that is written into the files; default its Hub id or directory. A base from
        a GGUF file or from scratch is written into the export.

    Raises:
      ClaraError: an unknown dtype; the directory is there already, or cannot be written.
    """
    clara = bundle.model.clara
    adapters, tables = _adapters(bundle, dtype), _tables(bundle, dtype)
    # These are few numbers, so they keep the dtype of training.
    tables |= {f"{MEMORY_MAP}{name}": np.asarray(leaf) for name, leaf in bundle.params["tokens"].get("map", {}).items()}
    with folder_when_whole(directory) as folder:
        name = _write_base_unless_named(bundle, folder, Path(directory).absolute() / BASE, base_name)
        about = {
            "stage": _stage(bundle),
            "trained": list(bundle.trained),
            "clara": dataclasses.asdict(clara),
            "precision": bundle.model.precision,
            # A base that is written along is written as the numbers that its int8 stands for.
            "quantization": NONE if _writes_base(bundle, base_name) else bundle.model.quantization,
            "base": name,
        }
        lora = {
            "r": clara.lora_rank,
            "lora_alpha": clara.lora_alpha,
            "lora_dropout": clara.lora_dropout,
            "target_modules": lora_modules(bundle.model.config),
        }
        peft_folders.write_peft(folder, about, adapters, tables, name, lora)
        bundle.tokenizer.save_hugging_face(folder / "tokenizer", added=True)
        found, found_tables = peft_folders.tensors(peft_folders.describe(folder))
        _compare(directory, adapters | {TABLES: tables}, found | {TABLES: found_tables})


def export_released(
    bundle: Bundle, directory: str | Path, dtype: str = "float32", base_name: str | None = None
) -> None:
    """Write a checkpoint in the format of the released models, which the released code loads.

    Args:
      bundle: the model.
      directory: a new one.
      dtype: see `export_peft`.
      base_name: see `export_peft`.

    Raises:
      ClaraError: see `export_peft`; a model with options that the format cannot express.
    """
    clara, tokenizer = bundle.model.clara, bundle.tokenizer
    if clara.lora_alpha != 2 * clara.lora_rank:
        raise ClaraError(
            f"lora_alpha is {clara.lora_alpha:g}: in the released format it is always twice the rank, "
            f"{2 * clara.lora_rank}; export --format peft"
        )
    if clara.memory_map != STATE:
        raise ClaraError(
            f'memory_map is "{clara.memory_map}": in the released format a memory is the last-layer state itself; '
            "export --format peft"
        )
    if clara.memory_places != END:
        raise ClaraError(
            f'memory_places is "{clara.memory_places}": in the released format memory tokens stand at the text\'s end; '
            "export --format peft"
        )
    if clara.memory_count != FIXED:
        raise ClaraError(
            f'memory_count is "{clara.memory_count}": in the released format every document has M memories; export '
            "--format peft"
        )
    if bundle.model.quantization != NONE:
        raise ClaraError(
            "the model was trained on its base in int8: in the released format adapters go with the base as it is; "
            "export --format peft, whose description says so, or --format merged"
        )
    if not tokenizer.has_released_ends:
        trained = "without one" if tokenizer.bos_id is None else f'with missing_bos "{tokenizer.missing_bos}"'
        raise ClaraError(
            "the base's tokenizer has no bos token (or no eos), and the released code would put another token in its "
            f"place: this model was trained {trained}; export --format peft"
        )
    adapters, tables = _adapters(bundle, dtype), _tables(bundle, dtype)
    if not bundle.ranks:
        del adapters["query_reasoner"]  # neither has the released code before the end-to-end stage
    with folder_when_whole(directory) as folder:
        stage = _stage(bundle).removeprefix("released ")
        # Only of a base whose name has "qwen" in it does the released code look for what stands for a missing bos.
        along = Path(directory).absolute() / (f"qwen_{BASE}" if tokenizer.lacks_bos else BASE)
        name = _write_base_unless_named(bundle, folder, along, base_name)
        if tokenizer.lacks_bos and "qwen" not in name.lower():
            warn_line(
                f"the base {name} has no bos token, for which the released code finds another where the base's name "
                'has "qwen" in it alone: it will not open this export; give such a name with --base-name'
            )
        config = {
            "decoder_model_name": name,
            "doc_max_length": clara.doc_max_length,
            "compr_rate": clara.compress_rate,
            "lora_r": clara.lora_rank,
            "different_mem_tokens": clara.different_mem_tokens,
            "generation_top_k": bundle.top_k or TOP_K,
            "max_new_tokens": 128,
            "training_stage": released.STAGES.get(stage, stage if stage in released.STAGES.values() else "stage1"),
        }
        released.write_released(folder, config, adapters, tables)
        found, found_tables = released.tensors(released.describe(folder))
        _compare(directory, adapters | {"tables": tables}, found | {"tables": found_tables})


def export_merged(bundle: Bundle, directory: str | Path, role: str = "generator", dtype: str | None = None) -> None:
    """Write one language model in the layout of transformers.

    It is the base with a role's adapter merged, the added tokens' rows at the end of its tables, and the tokenizer with
    the added tokens.

    Args:
      bundle: the model.
      directory: a new one.
      role: one of `clara_jax.method.clara.ROLES`; the generator answers.
      dtype: of the weights; default that of the model's base.

    Raises:
      ClaraError: an unknown role or dtype; the directory is there already, or cannot be written.
    """
    if role not in ROLES:
        raise ClaraError(f"role: {role!r} must be one of {', '.join(ROLES)}")
    dtype = dtype or str(bundle.model.base_dtype.name)
    _check_dtype(dtype)
    base = merge_adapter(bundle.model, bundle.params, role, bundle.mesh, jnp.dtype(dtype))
    with folder_when_whole(directory) as folder:
        _write_model(bundle, folder, base, _tables(bundle, dtype), dtype, added=True)


def export_compact(bundle: Bundle, directory: str | Path, dtype: str = "bfloat16") -> None:
    """Write the trained parameters, without base and tokenizer (see `clara_jax.checkpoints.compact`).

    Args:
      bundle: the model.
      directory: a new one.
      dtype: of the matrices, one of `clara_jax.checkpoints.compact.DTYPES`.

    Raises:
      ClaraError: an unknown dtype; a base that is part of the model; the directory is there already, or cannot be
        written.
    """
    if dtype not in compact.DTYPES:
        raise ClaraError(f"dtype: {dtype!r} must be one of {', '.join(compact.DTYPES)}")
    if bundle.base_overrides:
        raise ClaraError("the base is part of this model, and not one to refer to; export --format peft")
    leaves, _ = split(bundle.params, ("lora", "tokens"))
    if not bundle.ranks:
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("lora/query_reasoner/")}
    leaves = {name: np.asarray(gather(leaf), np.float32) for name, leaf in leaves.items()}
    about = {
        "base": dict(bundle.base),
        "clara": dataclasses.asdict(bundle.model.clara),
        "history": [dict(entry) for entry in bundle.history],
        "precision": bundle.model.precision,
        "quantization": bundle.model.quantization,
        "prompt_version": PROMPT_VERSION,
        "tokenizer": bundle.tokenizer.tokenizer_hash(),
        "trained": list(bundle.trained),
    }
    with folder_when_whole(directory) as folder:
        compact.write_compact(folder, about, leaves, dtype)
        found = dict(compact.tensors(compact.describe(folder)))
        for name, leaf in leaves.items():
            _check_rounding(directory, name, leaf, found.get(name), dtype)


def _check_rounding(directory: str | Path, name: str, leaf: np.ndarray, found: np.ndarray | None, dtype: str) -> None:
    """Compare an array with the one that was read back.

    Raises:
      ClaraError: they differ by more than the dtype's rounding: nothing for float32, 1/256 of a number for bfloat16,
        1/127 of the largest one for int8.
    """
    bound = {"float32": 0, "bfloat16": np.abs(leaf) / 256, "int8": np.abs(leaf).max() / 127}[dtype]
    if found is None or found.shape != leaf.shape or not (np.abs(found - leaf) <= bound).all():
        raise ClaraError(f"{directory}: {name} is not what was written; is the disk sound?")


def _write_model(
    bundle: Bundle, folder: Path, base: Mapping[str, Any], tables: Mapping[str, np.ndarray], dtype: str, added: bool
) -> None:
    """Write a Hugging Face model of these weights, and compare what is read back."""
    folder.mkdir(exist_ok=True)
    tokenizer = bundle.tokenizer
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id, "eos_token_id": list(bundle.end_ids)}
    write_config(folder, bundle.base["config"], dtype, len(tables[EMBEDDING]), ids)

    def tensors() -> Iterable[tuple[str, np.ndarray]]:
        for name, array in export_base(bundle.model.config, base):
            yield name, tables.get(name, array).astype(jnp.dtype(dtype))

    write_tensors(folder, tensors())
    tokenizer.save_hugging_face(folder, added)
    found = open_tensors(folder)
    if set(found) != {name for name, _ in tensors()}:
        raise ClaraError(f"{folder}: the tensors that were written are not those that are there; is the disk sound?")
    for name, array in tensors():
        _compare(folder, {"": {name: array}}, {"": {name: found[name]}})


def _write_base_unless_named(bundle: Bundle, folder: Path, along: Path, name: str | None) -> str:
    """Return the base's name for a configuration; a base that others cannot find is written into the folder.

    Args:
      bundle: the model.
      folder: that is being filled.
      along: where a base that is written will lie: a whole path, which holds from any working directory.
      name: the one that is given, if any.
    """
    if _writes_base(bundle, name):
        base = bundle.params["base"]
        tables = {tensor: np.asarray(base[part]["table"]) for tensor, part in _table_parts(bundle).items()}
        _write_model(bundle, folder / along.name, base, tables, bundle.model.base_dtype.name, added=False)
        return str(along)
    return name or bundle.base["name"]


def _writes_base(bundle: Bundle, name: str | None) -> bool:
    """Return whether an export has to hold its base: others cannot find it, and no other name is given."""
    known = bundle.base["name"]
    return name is None and ("base" in bundle.base_overrides or known == SMOLLM2 or known.lower().endswith(".gguf"))


def _adapters(bundle: Bundle, dtype: str) -> dict[str, dict[str, np.ndarray]]:
    _check_dtype(dtype)
    return {
        role: {
            name: np.ascontiguousarray(array.astype(jnp.dtype(dtype)))
            for name, array in export_lora(bundle.model.config, bundle.params["lora"][role]).items()
        }
        for role in ROLES
    }


def _tables(bundle: Bundle, dtype: str) -> dict[str, np.ndarray]:
    """Return the embedding table and, where untied, the LM head's, with the added tokens' rows after the base's."""
    tokenizer, tokens = bundle.tokenizer, bundle.params["tokens"]
    rows = {EMBEDDING: np.concatenate([np.asarray(tokens["memory"]), np.asarray(tokens["markers"])])}
    if "output" in tokens:
        rows[HEAD] = np.asarray(tokens["output"])
    names = [*dict.fromkeys(tokenizer.memory_ids), *(tokenizer.special_ids[name] for name in MARKERS)]
    tables = {}
    for tensor, part in _table_parts(bundle).items():
        table = np.empty((tokenizer.total_vocab, bundle.model.config.embed_dim), jnp.dtype(dtype))
        table[: tokenizer.vocab_size] = np.asarray(bundle.params["base"][part]["table"])
        table[names] = rows[tensor]
        tables[tensor] = table
    return tables


def _table_parts(bundle: Bundle) -> dict[str, str]:
    return {EMBEDDING: "embed"} | ({} if bundle.model.config.tied else {HEAD: "lm_head"})


def _stage(bundle: Bundle) -> str:
    return bundle.history[-1]["stage"] if bundle.history else ""


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ClaraError(f"dtype: {dtype!r} must be one of {', '.join(DTYPES)}")


def _compare(
    directory: str | Path,
    wanted: Mapping[str, Mapping[str, np.ndarray]],
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Compare tensors with those that were read back, bit for bit.

    Raises:
      ClaraError: they differ.
    """
    for group, tensors in wanted.items():
        for name, array in tensors.items():
            other = found.get(group, {}).get(name)
            if other is None or other.dtype != array.dtype or not np.array_equal(_bits(other), _bits(array)):
                raise ClaraError(f"{directory}: {group} {name} is not what was written; is the disk sound?")


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
