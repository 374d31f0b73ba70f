"""GGUF files (llama.cpp's format) converted back to what they were made from: configuration, tensors, tokenizer.

Metadata becomes the fields of ``config.json`` again, quantised tensors float32 arrays by Hugging Face name, and
``tokenizer.ggml.*`` a fast tokenizer with its chat template. What cannot be converted is an error that names it.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from clara_jax.formats.gguf_metadata import GGUFMetadata
from clara_jax.formats.gguf_tokenizer import build_tokenizer

if TYPE_CHECKING:
    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Frequency tables of the rotary embedding: they belong to the configuration, not to the weights.
_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GGUFFile:
    """One GGUF file, memory-mapped.

    Args:
      path: the file. Split files (``...-00001-of-00003.gguf``) must be merged first.

    Raises:
      ClaraError: unreadable, truncated or split file, or an architecture that is not supported, by name.
    """

    def __init__(self, path: str | os.PathLike):
        self._metadata = GGUFMetadata(path)
        self.path, self.architecture = self._metadata.path, self._metadata.architecture

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The relevant fields of the ``config.json`` that the file was made from.

        ``model_type`` is the GGUF architecture; files of Mistral models say ``llama``, which computes the same (with a
        sliding window in the metadata they become ``mistral``).

        Raises:
          ClaraError: a missing field, or one that cannot be expressed, by its GGUF name.
        """
        heads = self._metadata.integer("attention.head_count")
        head_dim = self._metadata.integer("attention.key_length", self._metadata.integer("embedding_length") // heads)
        if self._metadata.integer("attention.value_length", head_dim) != head_dim:
            self._metadata.fail(
                f'"{self.architecture}.attention.value_length" differs from the key length, which is not supported'
            )
        if self._metadata.field("expert_count", 0, int):
            self._metadata.fail(
                f'"{self.architecture}.expert_count": mixtures of experts are not supported; use a dense model'
            )
        config = {
            "model_type": self.architecture,
            "hidden_act": "silu",
            "hidden_size": self._metadata.integer("embedding_length"),
            "intermediate_size": self._metadata.integer("feed_forward_length"),
            "num_hidden_layers": self._metadata.integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._metadata.integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": float(self._metadata.required("attention.layer_norm_rms_epsilon", float)),
            "max_position_embeddings": self._metadata.integer("context_length"),
            "vocab_size": self._embedding_rows(),
            "tie_word_embeddings": "output.weight" not in self._metadata.stored,
            "attention_bias": self.architecture != "qwen2" and "blk.0.attn_q.bias" in self._metadata.stored,
            **self._rope(head_dim),
        }
        if self.architecture == "llama":
            config["mlp_bias"] = "blk.0.ffn_gate.bias" in self._metadata.stored
        window = self._metadata.field("attention.sliding_window", 0, int)
        if self.architecture in ("llama", "phi3"):
            config["sliding_window"] = window or None
            if window and self.architecture == "llama":
                config["model_type"] = "mistral"
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            config[f"{name}_token_id"] = self._metadata.get(f"tokenizer.ggml.{key}_token_id", kind=int)
        return config

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn or a message, besides the configuration's ``eos_token_id``."""
        named = (self._metadata.get(f"tokenizer.ggml.{key}_token_id", kind=int) for key in ("eot", "eom"))
        return tuple(i for i in named if i is not None)

    @functools.cached_property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The weights by Hugging Face name, float32 (linear layers ``[out, in]``), dequantised on access.

        Rows of q and k, which the llama architecture stores in pairs for its rotary embedding, are put back in order.

        Raises:
          ClaraError: a tensor with a name that no supported architecture has; on access, a quantisation that the
            ``gguf`` package cannot undo, by name.
        """
        return _Tensors(self)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer of the metadata, with bos, eos, unk, pad and chat template where the file has them.

        It adds no bos to a text. Control tokens are special tokens, user-defined ones added tokens; the filler rows of
        padded vocabularies (``[PAD...]``, unused) are left out, so ``len(tokenizer)`` is that of the original.

        Raises:
          ClaraError: a tokenizer model or pre-tokenizer that is not supported, by name; damaged token lists.
        """
        return build_tokenizer(self._metadata)

    # Configuration.

    def _embedding_rows(self) -> int:
        if "token_embd.weight" not in self._metadata.stored:
            self._metadata.fail('tensor "token_embd.weight" is missing; the file holds no model')
        shape = self._metadata.stored["token_embd.weight"].shape
        if len(shape) != 2:
            self._metadata.fail('tensor "token_embd.weight" is no table; the file holds no model')
        return int(shape[1])

    def _rope(self, head_dim: int) -> dict[str, Any]:
        """Return the configuration's fields about rotary position embedding."""
        theta = float(self._metadata.field("rope.freq_base", 10000.0, float))
        channels = self._metadata.integer("rope.dimension_count", head_dim)
        original = self._metadata.field("rope.scaling.original_context_length", kind=int)
        fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
        if channels != head_dim:
            if self.architecture == "llama":
                self._metadata.fail(
                    f'"llama.rope.dimension_count" is {channels}, not the head size {head_dim}, which is not supported'
                )
            fields["partial_rotary_factor"] = channels / head_dim

        kind = self._metadata.field("rope.scaling.type", "none", str)
        if "rope_freqs.weight" in self._metadata.stored:
            fields["rope_scaling"] = self._llama3_scaling(theta, channels, original)
        elif "rope_factors_long.weight" in self._metadata.stored:
            fields["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": self._array("rope_factors_short.weight").tolist(),
                "long_factor": self._array("rope_factors_long.weight").tolist(),
            }
            fields["original_max_position_embeddings"] = original or self._metadata.integer("context_length")
            if (attention := self._metadata.field("rope.scaling.attn_factor", kind=float)) is not None:
                fields["rope_scaling"]["attention_factor"] = float(attention)
        elif kind != "none":
            factor = float(self._metadata.required("rope.scaling.factor", float))
            fields["rope_scaling"] = {"rope_type": kind, "factor": factor}
            if original:
                fields["rope_scaling"]["original_max_position_embeddings"] = original
        return fields

    def _llama3_scaling(self, theta: float, channels: int, original: int | None) -> dict[str, Any] | None:
        """Reconstruct the parameters of Llama 3's scaling rule from the table of divisors that the file has instead.

        Between long and short waves the rule blends linearly in the frequency, so the parameters follow from a straight
        line. They are determined only up to a common factor; Llama's values are used where they fit.
        """
        divisors = self._array("rope_freqs.weight").astype(np.float64)
        if len(divisors) != channels // 2 or not np.all(np.isfinite(divisors)) or divisors.min() <= 0:
            self._metadata.fail(f'"rope_freqs.weight" must hold {channels // 2} positive numbers')
        if np.allclose(divisors, 1):
            return None
        frequencies = theta ** -(np.arange(0, channels, 2) / channels)
        factor = float(divisors.max())

        def fits(low: float, high: float, original: int) -> bool:
            blend = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
            return np.allclose(1 / ((1 - blend) / factor + blend), divisors, rtol=1e-4)

        candidates = [(1.0, 4.0, length) for length in (original, 8192) if length]
        blends = (1 / divisors - 1 / factor) / (1 - 1 / factor) if factor > 1 else np.ones_like(divisors)
        between = (blends > 1e-4) & (blends < 1 - 1e-4)
        if between.sum() >= 2:
            slope, start = np.polyfit(frequencies[between] / (2 * math.pi), blends[between], 1)
            if start < 0:
                candidates.append((1.0, 1 - 1 / start, round(-slope / start)))
        for low, high, length in candidates:
            if fits(low, high, length):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": length,
                }
        self._metadata.fail('"rope_freqs.weight" does not follow Llama 3\'s scaling rule, which is not supported')

    # Tensors.

    def _array(self, name: str) -> np.ndarray:
        if name not in self._metadata.stored:
            self._metadata.fail(f'tensor "{name}" is missing; download the file again')
        tensor = self._metadata.stored[name]
        if tensor.tensor_type.name.startswith("I") and tensor.tensor_type.name[1:].isdigit():
            self._metadata.fail(f'tensor "{name}" holds whole numbers ({tensor.tensor_type.name}), no weights')
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            self._metadata.fail(
                f'tensor "{name}" is quantised as {tensor.tensor_type.name}, which the gguf package cannot undo'
            )
        return np.asarray(array, dtype=np.float32)

    def _hf_names(self) -> dict[str, str]:
        """Return the names in the file by Hugging Face name."""
        names = {}
        for name in self._metadata.stored:
            if name in _TABLES:
                continue
            layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
            stem, _, kind = name.rpartition(".")
            if layer and layer[2] in _LAYER_NAMES:
                target = _LAYER_NAMES[layer[2]]
                if self.architecture == "phi3" and layer[2] == "ffn_up":
                    target = "mlp.gate_up_proj"  # gate first, as in Hugging Face
                names[f"model.layers.{layer[1]}.{target}.{layer[3]}"] = name
            elif stem in _NAMES and kind in ("weight", "bias"):
                names[f"{_NAMES[stem]}.{kind}"] = name
            else:
                self._metadata.fail(f'tensor "{name}" has no place in the supported architectures')
        return names

    def _unpaired(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Reorder the rows of each head: the file has rows i and i + C/2 side by side."""
        return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


class _Tensors(Mapping[str, np.ndarray]):
    def __init__(self, file: GGUFFile):
        self._file, self._names = file, file._hf_names()

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._names[name]
        array = self._file._array(stored)
        if self._file.architecture == "llama" and (role := re.search(r"attn_([qk])\.(?:weight|bias)$", stored)):
            heads = "num_attention_heads" if role[1] == "q" else "num_key_value_heads"
            array = self._file._unpaired(array, self._file.config[heads])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
