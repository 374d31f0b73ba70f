"""Checkpoints in the format of the released CLaRa models: ``config.json`` and two ``.pth`` files.

Pickles are never executed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.checkpoints.description import Description
from clara_jax.checkpoints.names import BASE_TABLES, EMBEDDING, HEAD, check_floating, load_adapters
from clara_jax.errors import ClaraError
from clara_jax.formats.hugging_face import write_json
from clara_jax.formats.json_file import read_object
from clara_jax.formats.torch_file import write_pth
from clara_jax.formats.torch_pickle import read_pth

ROLES = {"encoder_adapter": "compressor", "query_reasoner_adapter": "query_reasoner", "decoder_adapter": "generator"}
LARGEST = 2**20  # of a length or a rank
FILES = ("adapters.pth",)  # a directory that holds it is such a checkpoint
_ENDINGS = ("embed_tokens.weight", "lm_head.weight")  # of the names of the tables, in any wrapper
STAGES = {"scp": "stage1", "instruct": "stage1_2", "retrieval": "stage2_pretrain_retrieval", "end_to_end": "stage2"}
# Fields about parts of the released code that its published models do not use.
_UNUSED = {
    "ae_mode": "token",
    "attn_implementation": None,
    "compr_base_model_name": "mistralai/Mistral-7B-Instruct-v0.2",
    "compr_every_n_layer": None,
    "compr_linear_type": "concat",
    "compr_mlp_hidden_dim": 8096,
    "compr_model_name": None,
    "compr_n_layers": 5,
    "compr_rms_norm": False,
    "compr_use_mlp": False,
    "device_map": None,
    "kbtc_training": False,
    "load_adapters": True,
    "load_pretrained_checkpoint": False,
    "lora": True,
    "lora_compressor": False,
    "quantization": "no",
    "stage2_retrieval_top_n": 1,
    "training_form": "both_separately",
}
LICENCE_NOTE = "Note: the weights of the released CLaRa checkpoints are for research only (Apple AMLR licence)."


def describe(path: Path) -> Description:
    """Return the description of a checkpoint directory.

    Raises:
      ClaraError: a missing or malformed configuration.
    """
    config = read_object(path / "config.json", "give the directory of a released CLaRa checkpoint")
    if config.get("model_type") != "CLaRa":
        raise ClaraError(
            f'{path / "config.json"}: "model_type" {config.get("model_type")!r} is not "CLaRa"; this is no released '
            "CLaRa checkpoint"
        )
    for field in ("doc_max_length", "compr_rate", "lora_r"):
        value = config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
            raise ClaraError(
                f'{path / "config.json"}: "{field}" {reprlib.repr(value)} is not a positive whole number below '
                f"{LARGEST:,}"
            )
    if config.get("sep", True) is not True:
        raise ClaraError(
            f'{path / "config.json"}: "sep" {config["sep"]!r} is not supported; prompts have <SEP> between memories'
        )
    return Description(
        path=path,
        source=path / "config.json",
        clara={
            "doc_max_length": config["doc_max_length"],
            "compress_rate": config["compr_rate"],
            "lora_rank": config["lora_r"],
            "different_mem_tokens": bool(config.get("different_mem_tokens", True)),
        },
        base={"name": config.get("decoder_model_name")},
        precision="bfloat16",
        history=({"stage": f"released {config.get('training_stage', '')}".strip(), **_top_k(config)},),
        overrides=BASE_TABLES,
        base_field="decoder_model_name",
        released_bos=True,
        note=LICENCE_NOTE,
    )


def load(about: Description, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Load the checkpoint's leaves, each onto its devices; see `clara_jax.checkpoints.names.load_adapters`."""
    return load_adapters(leaves, *tensors(about), about.path, about.base["name"])


def tensors(about: Description) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return adapters by role as PEFT tensors, and whole embedding tables [V + added, E], mapped from their files.

    Raises:
      ClaraError: missing or malformed files, an adapter that is absent, a pickle with anything but tensors.
    """
    path = about.path
    raw = read_pth(path / "adapters.pth")
    for name, state in raw.items():
        if not isinstance(name, str) or not isinstance(state, dict):
            raise ClaraError(f"{path / 'adapters.pth'}: {reprlib.repr(name)} is no adapter with a dict of tensors")
        _check_state(path / "adapters.pth", state)
    unknown = sorted(set(raw) - set(ROLES))
    if unknown:
        raise ClaraError(f"{path / 'adapters.pth'}: unknown adapter {unknown[0]!r}; known: {', '.join(ROLES)}")
    # PEFT repeats the resized tables in every adapter.
    adapters = {
        ROLES[role]: {name: array for name, array in state.items() if not name.endswith(_ENDINGS)}
        for role, state in raw.items()
    }
    for name in ("encoder_adapter", "decoder_adapter"):
        if ROLES[name] not in adapters:
            raise ClaraError(f"{path / 'adapters.pth'}: adapter {name!r} is missing; a CLaRa checkpoint needs it")
    stored = read_pth(path / "decoder_first_last_layers.pth")
    _check_state(path / "decoder_first_last_layers.pth", stored)
    tables = {}
    for name, ending in zip((EMBEDDING, HEAD), _ENDINGS, strict=True):
        found = [array for stored_as, array in stored.items() if stored_as.endswith(ending)]
        if found:
            tables[name] = found[0]
    if EMBEDDING not in tables:
        raise ClaraError(f'{path / "decoder_first_last_layers.pth"}: "{EMBEDDING}" is missing')
    return adapters, tables


def _top_k(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of documents that the model answers from, where the configuration says it."""
    k = config.get("generation_top_k")
    return {"top_k": k} if isinstance(k, int) and not isinstance(k, bool) and 0 < k <= LARGEST else {}


def write_released(
    directory: Path,
    config: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, np.ndarray]],
    tables: Mapping[str, np.ndarray],
) -> None:
    """Write a checkpoint directory; the inverse of `describe` and `tensors`.

    Args:
      directory: an existing, empty folder.
      config: "decoder_model_name", "doc_max_length", "compr_rate", "lora_r", "different_mem_tokens",
        "generation_top_k", "training_stage" and "max_new_tokens".
      adapters: PEFT tensors by plain name (`clara_jax.checkpoints.names.export_lora`), by role.
      tables: "model.embed_tokens.weight" and, where untied, "lm_head.weight".
    """
    code = {"AutoConfig": "modeling_clara.CLaRaConfig", "AutoModel": "modeling_clara.CLaRa"}
    fixed = {"model_type": "CLaRa", "auto_map": code, "optimize_mem_tokens": True, "sep": True}
    fixed |= {"lora_r_compressor": config["lora_r"]}
    write_json(directory / "config.json", dict(sorted({**_UNUSED, **fixed, **config}.items())))
    names = {role: name for name, role in ROLES.items()}
    write_pth(directory / "adapters.pth", {names[role]: {**state, **tables} for role, state in adapters.items()})
    write_pth(directory / "decoder_first_last_layers.pth", tables)


def _check_state(path: Path, state: dict) -> None:
    """Check that an object is a dict of tensors by name."""
    for name, array in state.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise ClaraError(f"{path}: {reprlib.repr(name)} is a {type(array).__name__}, not a tensor by name")
    check_floating(state, str(path))
