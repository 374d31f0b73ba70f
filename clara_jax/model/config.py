"""The architecture of a base model: everything the backbone needs, read from a Hugging Face ``config.json``.

A field that changes the numbers and that the backbone does not implement is refused by name; an architecture that it
does not know is refused by name. Nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeGuard

from clara_jax.errors import ClaraError

ARCHITECTURES = ("mistral", "llama", "qwen2", "qwen3", "phi3")

# No published model comes near: anything larger would exhaust memory before another error in the file is found.
LARGEST = {"num_hidden_layers": 4096, "hidden_size": 2**18, "intermediate_size": 2**21, "vocab_size": 2**24}
LARGEST |= {"num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 2**16}
LARGEST_NUMBER = 2**40  # of fields without an entry: positions

# Hugging Face's defaults of fields that the file lacks, as far as they differ between model types.
ABSENT = {
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
    "phi3": {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: ``channels`` of each head rotate, with one of four frequency tables."""

    theta: float
    channels: int
    kind: Literal["default", "linear", "llama3", "longrope"] = "default"
    factor: float = 1.0
    original_positions: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: pre-norm blocks of rotary grouped-query attention and a gated SiLU MLP."""

    architecture: str
    vocab_size: int  # V
    embed_dim: int  # E
    layers: int  # L
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # C
    mlp_dim: int  # F
    norm_eps: float
    rope: RopeConfig
    max_positions: int
    tied: bool = False  # the LM head is the embedding table
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen3)
    fused: bool = False  # one LoRA input matrix for q, k, v and one for gate, up (Phi-3)
    sliding_window: int | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ClaraError(
                f'config.json: "num_attention_heads" {self.heads} is no multiple of "num_key_value_heads" '
                f"{self.kv_heads}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Return the configuration that a ``config.json`` describes.

        Args:
          config: the parsed file.
          source: its name in error messages.

        Raises:
          ClaraError: unknown architecture, missing field, or a field that matters and is not supported, by name.
        """
        return _Reader(config, source).model()


class _Reader:
    """Reader of fields with their Hugging Face defaults; its errors name the field that is wrong."""

    def __init__(self, config: Mapping[str, Any], source: str):
        self.config, self.source = config, source

    def refuse(self, field: str, why: str) -> NoReturn:
        raise ClaraError(f'{self.source}: "{field}" {reprlib.repr(self.config.get(field))} {why}')

    def positive_int(self, field: str, default: int | None = None) -> int:
        value = self.config.get(field)
        value = default if value is None else value
        if value is None:
            raise ClaraError(f'{self.source}: "{field}" is missing; a model configuration needs it')
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(field, "is not a positive whole number")
        if value > LARGEST.get(field, LARGEST_NUMBER):
            self.refuse(field, f"is more than any model has; the most is {LARGEST.get(field, LARGEST_NUMBER):,}")
        return value

    def number(self, field: str, default: float) -> float:
        value = self.config.get(field)
        value = default if value is None else value
        if not _is_number(value) or value <= 0:
            self.refuse(field, "is not a positive number")
        return float(value)

    def flag(self, field: str) -> bool:
        value = self.config.get(field)
        if value not in (None, True, False):
            self.refuse(field, "is neither true nor false")
        return bool(value)

    def model(self) -> ModelConfig:
        architecture = self.config.get("model_type")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            self.refuse("model_type", f"is not supported; known: {', '.join(ARCHITECTURES)}")
        self.config = {**ABSENT[architecture], **self.config}
        self.check_unsupported(architecture)
        embed_dim, heads = self.positive_int("hidden_size"), self.positive_int("num_attention_heads")
        head_dim = self.positive_int("head_dim", embed_dim // heads)
        attention_bias = self.flag("attention_bias") and architecture in ("llama", "qwen3")
        return ModelConfig(
            architecture=architecture,
            vocab_size=self.positive_int("vocab_size"),
            embed_dim=embed_dim,
            layers=self.positive_int("num_hidden_layers"),
            heads=heads,
            kv_heads=self.positive_int("num_key_value_heads", heads),
            head_dim=head_dim,
            mlp_dim=self.positive_int("intermediate_size"),
            norm_eps=self.number("rms_norm_eps", 1e-6),
            rope=self.rope(head_dim, architecture),
            max_positions=self.positive_int("max_position_embeddings"),
            tied=self.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or architecture == "qwen2",
            out_bias=attention_bias,
            mlp_bias=self.flag("mlp_bias") and architecture == "llama",
            qk_norm=architecture == "qwen3",
            fused=architecture == "phi3",
            sliding_window=self.sliding_window(architecture),
        )

    def check_unsupported(self, architecture: str):
        if self.config.get("hidden_act", "silu") not in ["silu", "swish"]:
            self.refuse("hidden_act", 'is not supported; known: "silu"')
        for field in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
            if self.config.get(field):
                self.refuse(field, "is not supported: the base is frozen and has no dropout of its own; set it to 0")
        for field in (
            "quantization_config",
            "compression_config",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "num_experts",
            "num_local_experts",
        ):
            if self.config.get(field):
                self.refuse(field, "is not supported; use a plain, unquantized dense model")
        if self.flag("use_sliding_window"):
            self.refuse("use_sliding_window", "is not supported (it differs from layer to layer); set it to false")
        kinds = self.config.get("layer_types") or ()
        if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, str) for kind in kinds):
            self.refuse("layer_types", "is not a list of names")
        kinds = set(kinds)
        # Qwen slides only with "use_sliding_window"; elsewhere "sliding_window" alone decides.
        known = {"full_attention"} if architecture.startswith("qwen") else {"full_attention", "sliding_attention"}
        if len(kinds) > 1 or kinds - known:
            self.refuse(
                "layer_types", f"is not supported; every layer must be of one kind: {' or '.join(sorted(known))}"
            )

    def sliding_window(self, architecture: str) -> int | None:
        if architecture not in ("mistral", "phi3") or self.config.get("sliding_window") is None:
            return None
        return self.positive_int("sliding_window")

    def rope(self, head_dim: int, architecture: str) -> RopeConfig:
        # "rope_parameters" is the newer spelling: scaling and theta in one place.
        field = "rope_scaling" if self.config.get("rope_scaling") else "rope_parameters"
        scaling = self.config.get(field) or {}
        if not isinstance(scaling, Mapping) or any(isinstance(value, Mapping) for value in scaling.values()):
            self.refuse(field, "is not one object for all layers, which is not supported")

        def number(key: str, default: float | None = None) -> float:
            value = scaling.get(key, self.config.get(key))
            value = default if value is None else value
            if not _is_number(value) or value <= 0:
                raise ClaraError(f'{self.source}: "{field}" needs a positive number for "{key}", not {_short(value)}')
            return float(value)

        def numbers(key: str, count: int) -> tuple[float, ...]:
            value = scaling.get(key)
            if not isinstance(value, list) or len(value) != count or not all(_is_number(x) and x > 0 for x in value):
                raise ClaraError(f'{self.source}: "{field}" needs a list of {count} numbers for "{key}"')
            return tuple(map(float, value))

        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if not isinstance(kind, str):
            self.refuse(field, "names no rope type")
        part = number("partial_rotary_factor", 1.0)
        if part != 1 and architecture != "phi3":
            self.refuse("partial_rotary_factor", f'is not supported for "{architecture}"; only "phi3" rotates a part')
        channels = int(head_dim * part)
        if part > 1 or channels % 2 or not channels:
            self.refuse(field, f"rotates {channels} of {head_dim} channels; they must be even, and no more than all")
        base = RopeConfig(theta=number("rope_theta", 10000.0), channels=channels)
        # Of this one field, Hugging Face prefers the spelling outside the scaling to the one inside.
        longest, key = self.positive_int("max_position_embeddings"), "original_max_position_embeddings"
        original = self.positive_int(key) if self.config.get(key) is not None else int(number(key, longest))
        if kind != "default" and original < 2:
            raise ClaraError(f'{self.source}: "{key}" {original} is too small for "{field}"')
        if kind == "default":
            return base
        if kind == "linear":
            return dataclasses.replace(base, kind="linear", factor=number("factor"))
        if kind == "llama3":
            return dataclasses.replace(
                base,
                kind="llama3",
                factor=number("factor"),
                low_frequency_factor=number("low_freq_factor"),
                high_frequency_factor=number("high_freq_factor"),
                original_positions=original,
            )
        if kind in ("longrope", "su"):
            stretch = number("factor", longest / original)
            default = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
            return dataclasses.replace(
                base,
                kind="longrope",
                original_positions=original,
                short_factors=numbers("short_factor", channels // 2),
                long_factors=numbers("long_factor", channels // 2),
                attention_scale=number("attention_factor", default),
            )
        self.refuse(field, f'has rope type "{kind}", which is not supported; known: default, linear, llama3, longrope')


def _is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a number that a float holds: no bool, not infinite, not of hundreds of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


_short = reprlib.repr
