"""The published ``config.json`` of base models that configurations name, for planning without the model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.json_file import read_object

# The fields that shapes and costs depend on, without Phi's tables of rotary factors, which change neither.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-Instruct-v0.2": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "microsoft/Phi-4-mini-instruct": {
        "model_type": "phi3",
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131072,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
}


def base_config(name: str, file: str | None = None) -> dict[str, Any]:
    """Return a base model's configuration, without its weights.

    Args:
      name: as `clara_jax.training.config.ModelSection.base`.
      file: a ``config.json`` to read instead.

    Raises:
      ClaraError: there is neither a file, nor a known name, nor a model of that name.
    """
    if file:
        return read_object(Path(file), "name the config.json of a Hugging Face model")
    if name in PUBLISHED:
        return PUBLISHED[name]
    if not name or name == "scratch":
        raise ClaraError(
            "--base-config is missing: the configuration names no base whose sizes are known before the run; give the "
            "config.json of one"
        )
    return dict(open_base(name).config)
