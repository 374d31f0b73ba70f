"""GGUF files (llama.cpp's format) converted back to what they were made from: configuration, tensors, tokenizer.

Metadata becomes the fields of ``config.json`` again, quantised tensors float32 arrays by Hugging Face name, and
``tokenizer.ggml.*`` a fast tokenizer with its chat template. What cannot be converted is an error that names it.
"""

from __future__ import annotations

import functools
import math
import os
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import gguf
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.formats.gguf_header import check_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3")

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

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_SPLIT = _CONTRACTION + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPLITS = {  # tokenizer.ggml.pre → how text is split before the merges; None is GPT-2's pattern
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA3_SPLIT,
    "dbrx": _LLAMA3_SPLIT,  # Phi-4
    "qwen2": _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"),
    "gpt-4o": (  # Phi-4-mini
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
LONGEST_PIECE = 1024  # of SentencePiece, in characters
_KINDS = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type


class GGUFFile:
    """One GGUF file, memory-mapped.

    Args:
      path: the file. Split files (``...-00001-of-00003.gguf``) must be merged first.

    Raises:
      ClaraError: unreadable, truncated or split file, or an architecture that is not supported, by name.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                if file.read(4) != b"GGUF":
                    self._fail("not a GGUF file")
            check_header(self.path)
            # Absurd sizes overflow in the package's arithmetic, with a warning.
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                self._reader = gguf.GGUFReader(self.path)
        except OSError as error:
            self._fail(f"cannot be read ({error.strerror or error})")
        except ClaraError:
            raise
        except Exception as error:  # the package raises many types
            self._fail(f"truncated or damaged ({type(error).__name__}: {str(error)[:200]}); download it again")
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
        if self._reader.byte_order == "S":
            self._fail("has the other byte order than this machine; convert it with gguf_convert_endian.py")
        if self._get("split.count", 1, int) > 1:
            self._fail("is one part of several; join them with llama-gguf-split --merge")
        self.architecture = self._get("general.architecture", kind=str)
        if self.architecture not in ARCHITECTURES:
            self._fail(f'architecture "{self.architecture}" is not supported; known: {", ".join(ARCHITECTURES)}')

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The relevant fields of the ``config.json`` that the file was made from.

        ``model_type`` is the GGUF architecture; files of Mistral models say ``llama``, which computes the same (with a
        sliding window in the metadata they become ``mistral``).

        Raises:
          ClaraError: a missing field, or one that cannot be expressed, by its GGUF name.
        """
        heads = self._integer("attention.head_count")
        head_dim = self._integer("attention.key_length", self._integer("embedding_length") // heads)
        if self._integer("attention.value_length", head_dim) != head_dim:
            self._fail(
                f'"{self.architecture}.attention.value_length" differs from the key length, which is not supported'
            )
        if self._field("expert_count", 0, int):
            self._fail(f'"{self.architecture}.expert_count": mixtures of experts are not supported; use a dense model')
        config = {
            "model_type": self.architecture,
            "hidden_act": "silu",
            "hidden_size": self._integer("embedding_length"),
            "intermediate_size": self._integer("feed_forward_length"),
            "num_hidden_layers": self._integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": float(self._required("attention.layer_norm_rms_epsilon", float)),
            "max_position_embeddings": self._integer("context_length"),
            "vocab_size": self._embedding_rows(),
            "tie_word_embeddings": "output.weight" not in self._stored,
            "attention_bias": self.architecture != "qwen2" and "blk.0.attn_q.bias" in self._stored,
            **self._rope(head_dim),
        }
        if self.architecture == "llama":
            config["mlp_bias"] = "blk.0.ffn_gate.bias" in self._stored
        window = self._field("attention.sliding_window", 0, int)
        if self.architecture in ("llama", "phi3"):
            config["sliding_window"] = window or None
            if window and self.architecture == "llama":
                config["model_type"] = "mistral"
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            config[f"{name}_token_id"] = self._get(f"tokenizer.ggml.{key}_token_id", kind=int)
        return config

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn or a message, besides the configuration's ``eos_token_id``."""
        named = (self._get(f"tokenizer.ggml.{key}_token_id", kind=int) for key in ("eot", "eom"))
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
        from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

        model = self._get("tokenizer.ggml.model", kind=str)
        makers = {"gpt2": self._byte_level_tokenizer, "llama": self._sentencepiece_tokenizer}
        if model not in makers:
            self._fail(f'tokenizer model "{model}" is not supported; known: {", ".join(makers)}')
        tokens, types = self._tokens()
        try:
            tokenizer = makers[model](tokens, types)
            self._add_tokens(tokenizer, tokens, types)
        except ClaraError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the package raises plain Exception, and its panics are not even that
            self._fail(f"the tokenizer in the metadata is damaged ({str(error)[:300]})")

        special = {}
        # Where these ids are missing, SentencePiece's defaults hold; other tokenizers have no such tokens then.
        defaults = {"unk": 0, "bos": 1, "eos": 2} if model == "llama" else {}
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token_id = self._get(f"tokenizer.ggml.{key}_token_id", defaults.get(name), int)
            if token_id is None:
                continue
            if token_id not in tokens:
                self._fail(f'"tokenizer.ggml.{key}_token_id" is {token_id}, which is no token of its list')
            special[f"{name}_token"] = tokens[token_id]
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=self._get("tokenizer.chat_template", kind=str),
            clean_up_tokenization_spaces=False,
            **special,
        )

    # Metadata.

    def _fail(self, why: str) -> NoReturn:
        raise ClaraError(f"{self.path}: {why}")

    def _get(self, key: str, default: Any = None, kind: type | None = None) -> Any:
        """Return the value of a field.

        Args:
          key: its name.
          default: the value where it is missing.
          kind: type that it must have: str, int, bool, or float, which includes whole numbers; None for any.
        """
        field = self._reader.get_field(key)
        if field is None:
            return default
        try:
            value = field.contents()
        except UnicodeDecodeError:
            self._fail(f'"{key}" is not UTF-8')
        except Exception as error:  # of a damaged field
            self._fail(f'"{key}" cannot be read ({type(error).__name__})')
        if kind is not None:
            self._check(key, [value], kind)
        return value

    def _list(self, key: str, kind: type) -> list | None:
        """Return the values of a field that is a list of one type; None where it is missing."""
        values = self._get(key)
        if values is not None and not isinstance(values, list):
            self._fail(f'"{key}" is {_shown(values)}, not a list')
        self._check(key, values or [], kind)
        return values

    def _check(self, key: str, values: list, kind: type) -> None:
        kinds = (float, int) if kind is float else (kind,)
        for value in values:
            # True is a number to Python alone.
            if type(value) not in kinds or (kind is float and not math.isfinite(value)):
                self._fail(f'"{key}" is {_shown(value)}, not {_KINDS[kind]}')

    def _field(self, key: str, default: Any = None, kind: type | None = None) -> Any:
        return self._get(f"{self.architecture}.{key}", default, kind)

    def _required(self, key: str, kind: type | None = None) -> Any:
        value = self._field(key, kind=kind)
        if value is None:
            self._fail(f'"{self.architecture}.{key}" is missing; the file does not describe its model')
        return value

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._required(key) if default is None else self._field(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # one number per layer, all the same
        if type(value) is not int or value < 1:
            self._fail(f'"{self.architecture}.{key}" is {_shown(value)}, not one positive number for all layers')
        return value

    def _embedding_rows(self) -> int:
        if "token_embd.weight" not in self._stored:
            self._fail('tensor "token_embd.weight" is missing; the file holds no model')
        shape = self._stored["token_embd.weight"].shape
        if len(shape) != 2:
            self._fail('tensor "token_embd.weight" is no table; the file holds no model')
        return int(shape[1])

    def _rope(self, head_dim: int) -> dict[str, Any]:
        """Return the configuration's fields about rotary position embedding."""
        theta = float(self._field("rope.freq_base", 10000.0, float))
        channels = self._integer("rope.dimension_count", head_dim)
        original = self._field("rope.scaling.original_context_length", kind=int)
        fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
        if channels != head_dim:
            if self.architecture == "llama":
                self._fail(
                    f'"llama.rope.dimension_count" is {channels}, not the head size {head_dim}, which is not supported'
                )
            fields["partial_rotary_factor"] = channels / head_dim

        kind = self._field("rope.scaling.type", "none", str)
        if "rope_freqs.weight" in self._stored:
            fields["rope_scaling"] = self._llama3_scaling(theta, channels, original)
        elif "rope_factors_long.weight" in self._stored:
            fields["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": self._array("rope_factors_short.weight").tolist(),
                "long_factor": self._array("rope_factors_long.weight").tolist(),
            }
            fields["original_max_position_embeddings"] = original or self._integer("context_length")
            if (attention := self._field("rope.scaling.attn_factor", kind=float)) is not None:
                fields["rope_scaling"]["attention_factor"] = float(attention)
        elif kind != "none":
            factor = float(self._required("rope.scaling.factor", float))
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
            self._fail(f'"rope_freqs.weight" must hold {channels // 2} positive numbers')
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
        self._fail('"rope_freqs.weight" does not follow Llama 3\'s scaling rule, which is not supported')

    # Tensors.

    def _array(self, name: str) -> np.ndarray:
        if name not in self._stored:
            self._fail(f'tensor "{name}" is missing; download the file again')
        tensor = self._stored[name]
        if tensor.tensor_type.name.startswith("I") and tensor.tensor_type.name[1:].isdigit():
            self._fail(f'tensor "{name}" holds whole numbers ({tensor.tensor_type.name}), no weights')
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            self._fail(f'tensor "{name}" is quantised as {tensor.tensor_type.name}, which the gguf package cannot undo')
        return np.asarray(array, dtype=np.float32)

    def _hf_names(self) -> dict[str, str]:
        """Return the names in the file by Hugging Face name."""
        names = {}
        for name in self._stored:
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
                self._fail(f'tensor "{name}" has no place in the supported architectures')
        return names

    def _unpaired(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Reorder the rows of each head: the file has rows i and i + C/2 side by side."""
        return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)

    # Tokenizer.

    def _tokens(self) -> tuple[dict[int, str], dict[int, int]]:
        """Return tokens and their types by id, without the filler of padded vocabularies."""
        tokens = self._list("tokenizer.ggml.tokens", str)
        if not tokens:
            self._fail('"tokenizer.ggml.tokens" is missing; the file holds no tokenizer')
        types = self._list("tokenizer.ggml.token_type", int) or [_NORMAL] * len(tokens)
        if len(types) != len(tokens):
            self._fail(f'"tokenizer.ggml.token_type" has {len(types)} entries for {len(tokens)} tokens')
        kept = [
            i
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind != _UNUSED or token != f"[PAD{i}]"
        ]
        return {i: tokens[i] for i in kept}, {i: types[i] for i in kept}

    def _byte_level_tokenizer(self, tokens: dict[int, str], types: dict[int, int]) -> Tokenizer:
        """Build a byte-level BPE tokenizer (GPT-2 and its successors)."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        pre = self._get("tokenizer.ggml.pre", "default", str)
        if pre not in _SPLITS:
            self._fail(f'pre-tokenizer "{pre}" is not supported; known: {", ".join(_SPLITS)}')
        merges = self._list("tokenizer.ggml.merges", str)
        if merges is None:
            self._fail('"tokenizer.ggml.merges" is missing; the file holds no byte-level tokenizer')
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        vocabulary = {token: i for i, token in tokens.items()}
        # Llama 3 keeps a word that is a token whole, even where its merges would not produce it.
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
        steps = []
        if pre == "smollm":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if pattern := _SPLITS[pre]:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece_tokenizer(self, tokens: dict[int, str], types: dict[int, int]) -> Tokenizer:
        """Build a SentencePiece BPE tokenizer (Llama 2, Mistral, Phi-3).

        Neighbours whose concatenation is a token are merged, best score first.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers

        scores = self._list("tokenizer.ggml.scores", float)
        if scores is None or len(scores) <= max(tokens):
            self._fail('"tokenizer.ggml.scores" is missing or too short; the file holds no SentencePiece tokenizer')
        if self._get("tokenizer.ggml.precompiled_charsmap"):
            self._fail('"tokenizer.ggml.precompiled_charsmap": normalising SentencePiece models are not supported')
        vocabulary = {token: i for i, token in tokens.items()}
        mergeable = {token for i, token in tokens.items() if types[i] in (_NORMAL, _USER_DEFINED, _UNUSED)}
        merges = []
        if longest := max(mergeable, key=len, default=""):
            if len(longest) > LONGEST_PIECE:  # the time grows with the square of it
                self._fail(f"the tokenizer has a token of {len(longest):,} characters")
        for token in mergeable:
            for cut in range(1, len(token)):
                if token[:cut] in mergeable and token[cut:] in mergeable:
                    # Ties as in Hugging Face's conversion: the longer left part first.
                    order = (-scores[vocabulary[token]], -cut, cut - len(token), vocabulary[token])
                    merges.append((order, (token[:cut], token[cut:])))
        unknown = tokens.get(self._get("tokenizer.ggml.unknown_token_id", 0, int))
        pairs = [pair for _, pair in sorted(merges)]
        model = models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        # The "space" of SentencePiece is U+2581; one is put before each stretch of text.
        prefix = self._get("tokenizer.ggml.add_space_prefix", True)
        tokenizer.normalizer = normalizers.Sequence(
            ([normalizers.Prepend("▁")] if prefix else []) + [normalizers.Replace(" ", "▁")]
        )
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return tokenizer

    def _add_tokens(self, tokenizer: Tokenizer, tokens: dict[int, str], types: dict[int, int]):
        """Add the tokens that are found in the text before it is split."""
        from tokenizers import AddedToken

        # Phi-3's tokenizer swallows white space after its markers; GGUF has no field for it.
        swallowing = self.architecture == "phi3" and self._get("tokenizer.ggml.model") == "llama"
        added: dict[bool, list[AddedToken]] = {True: [], False: []}
        for i, kind in types.items():
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
                special = kind != _USER_DEFINED
                right = swallowing and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>")
                added[special].append(AddedToken(tokens[i], normalized=False, rstrip=right, special=special))
        tokenizer.add_special_tokens(added[True])
        tokenizer.add_tokens(added[False])


def _shown(value: Any) -> str:
    return reprlib.repr(value)


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
