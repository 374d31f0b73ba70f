"""What a base model is: everything the backbone needs, read from a Hugging Face ``config.json``.

A field that changes the numbers and that the backbone does not implement is refused by name; an architecture that it
does not know is refused by name. Nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from clara_jax.errors import ClaraError

ARCHITECTURES = ("mistral", "llama", "qwen2", "qwen3", "phi3")


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
    width: int  # E
    layers: int  # L
    heads: int  # H
    kv_heads: int  # G
    head_channels: int  # C
    mlp_width: int  # F
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
        """Reads the content of a ``config.json``.

        Args:
          config: the parsed file.
          source: what to call it in error messages.
        Raises:
          ClaraError: unknown architecture, missing field, or a field that matters and is not supported, by name.
        """
        return _Reader(config, source).model()


class _Reader:
    """Reads fields with their Hugging Face defaults and says which one is wrong."""

    def __init__(self, config: Mapping[str, Any], source: str):
        self.config, self.source = config, source

    def refuse(self, field: str, why: str):
        raise ClaraError(f'{self.source}: "{field}" {self.config.get(field)!r} {why}')

    def positive_int(self, field: str, default: int | None = None) -> int:
        value = self.config.get(field)
        value = default if value is None else value
        if value is None:
            raise ClaraError(f'{self.source}: "{field}" is missing; a model configuration needs it')
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(field, "is not a positive whole number")
        return value

    def number(self, field: str, default: float) -> float:
        value = self.config.get(field)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.refuse(field, "is not a number")
        return float(value)

    def model(self) -> ModelConfig:
        architecture = self.config.get("model_type")
        if architecture not in ARCHITECTURES:
            self.refuse("model_type", f"is not supported; known: {', '.join(ARCHITECTURES)}")
        self.check_unsupported()
        width, heads = self.positive_int("hidden_size"), self.positive_int("num_attention_heads")
        head_channels = self.positive_int("head_dim", 128 if architecture == "qwen3" else width // heads)
        attention_bias = bool(self.config.get("attention_bias", False)) and architecture in ("llama", "qwen3")
        return ModelConfig(
            architecture=architecture,
            vocab_size=self.positive_int("vocab_size"),
            width=width,
            layers=self.positive_int("num_hidden_layers"),
            heads=heads,
            kv_heads=self.positive_int("num_key_value_heads", heads),
            head_channels=head_channels,
            mlp_width=self.positive_int("intermediate_size"),
            norm_eps=self.number("rms_norm_eps", 1e-6),
            rope=self.rope(head_channels),
            max_positions=self.positive_int("max_position_embeddings", 4096),
            tied=bool(self.config.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or architecture == "qwen2",
            out_bias=attention_bias,
            mlp_bias=bool(self.config.get("mlp_bias", False)) and architecture == "llama",
            qk_norm=architecture == "qwen3",
            fused=architecture == "phi3",
            sliding_window=self.sliding_window(architecture),
        )

    def check_unsupported(self):
        if self.config.get("hidden_act", "silu") not in ("silu", "swish"):
            self.refuse("hidden_act", 'is not supported; known: "silu"')
        for field in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
            if self.config.get(field):
                self.refuse(field, "is not supported: the base is frozen and has no dropout of its own; set it to 0")
        for field in (
            "quantization_config",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "num_experts",
            "num_local_experts",
        ):
            if self.config.get(field):
                self.refuse(field, "is not supported; use a plain, unquantized dense model")
        if self.config.get("use_sliding_window"):
            self.refuse("use_sliding_window", "is not supported (it differs from layer to layer); set it to false")
        kinds = set(self.config.get("layer_types") or ())
        if len(kinds) > 1 or kinds - {"full_attention", "sliding_attention"}:
            self.refuse("layer_types", "is not supported; every layer must be of one kind, full or sliding attention")

    def sliding_window(self, architecture: str) -> int | None:
        if architecture not in ("mistral", "phi3") or "full_attention" in (self.config.get("layer_types") or ()):
            return None
        # Hugging Face's Mistral has a window unless the file says null.
        if "sliding_window" not in self.config:
            return 4096 if architecture == "mistral" else None
        return None if self.config["sliding_window"] is None else self.positive_int("sliding_window")

    def rope(self, head_channels: int) -> RopeConfig:
        # "rope_parameters" is the newer spelling: scaling and theta in one place.
        field = "rope_parameters" if self.config.get("rope_parameters") else "rope_scaling"
        scaling = self.config.get(field) or {}
        if not isinstance(scaling, Mapping):
            self.refuse(field, "is not an object")

        def get(key: str, default: Any = None) -> Any:
            value = scaling.get(key, self.config.get(key))
            if value is None:
                value = default
            if value is None:
                raise ClaraError(f'{self.source}: "{field}" lacks "{key}"')
            return value

        kind = scaling.get("rope_type", scaling.get("type", "default"))
        channels = int(head_channels * float(get("partial_rotary_factor", 1.0)))
        base = RopeConfig(theta=float(get("rope_theta", 10000.0)), channels=channels)
        if kind == "default":
            return base
        if kind == "linear":
            return dataclasses.replace(base, kind="linear", factor=float(get("factor")))
        if kind == "llama3":
            return dataclasses.replace(
                base,
                kind="llama3",
                factor=float(get("factor")),
                low_frequency_factor=float(get("low_freq_factor")),
                high_frequency_factor=float(get("high_freq_factor")),
                original_positions=int(get("original_max_position_embeddings")),
            )
        if kind in ("longrope", "su"):
            short, long = tuple(map(float, get("short_factor"))), tuple(map(float, get("long_factor")))
            if len(short) != channels // 2 or len(long) != channels // 2:
                self.refuse(field, f'must hold {channels // 2} numbers in "short_factor" and in "long_factor"')
            original = int(get("original_max_position_embeddings", self.positive_int("max_position_embeddings")))
            stretch = self.positive_int("max_position_embeddings") / original
            if "original_max_position_embeddings" not in self.config and "factor" in scaling:
                stretch = float(scaling["factor"])
            scale = scaling.get("attention_factor")
            if scale is None:
                scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
            return dataclasses.replace(
                base,
                kind="longrope",
                original_positions=original,
                short_factors=short,
                long_factors=long,
                attention_scale=float(scale),
            )
        return self.refuse(
            field, f'has rope type "{kind}", which is not supported; known: default, linear, llama3, longrope'
        )
