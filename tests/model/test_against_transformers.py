"""The backbone against Hugging Face's models in torch, for architectures of which no golden files lie here.

Random models of two layers; needs torch, which the package itself does not: `pip install torch`, then `pytest -m slow`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from clara_jax.checkpoints import opening
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.inference.decode import Sampling, generate
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, initialise_adapters
from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import put_batch
from clara_jax.model.transformer import join_logits
from tests import tiny
from tests.exports import load_base

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 8.0, 12.0, 17.0],
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 48, "rope_theta": 5e3}
LONG = {"original_max_position_embeddings": 32, "max_position_embeddings": 512}

# name: (model type, fields beside those of `hf_config`)
CASES = {
    "qwen2": ("qwen2", {"max_window_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 with biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "llama3 scaling": ("llama", {"head_dim": 32, "rope_parameters": LLAMA3, "max_position_embeddings": 384}),
    "llama linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral with a window": ("mistral", {"head_dim": 24, "sliding_window": 9, "num_key_value_heads": 1}),
    "phi3 with a window": ("phi3", {"sliding_window": 9}),
    "phi4 mini": (
        "phi3",
        {**LONG, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75}, "tie_word_embeddings": True},
    ),
    "phi4 mini, attention factor": (
        "phi3",
        {**LONG, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75, "attention_factor": 1.3}},
    ),
    "phi4 mini, factor": (
        "phi3",
        {**LONG, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75, "factor": 2.0}},
    ),
}  # fmt: skip
ROWS, TOKENS = 160, 150  # the embedding table is padded beyond the tokenizer
NEW_TOKENS = 20
SMALL = ClaraConfig(doc_max_length=16, compress_rate=4, lora_rank=2, max_length=128)


def hf_config(model_type, fields):
    common = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": ROWS, "max_position_embeddings": 128,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return transformers.AutoConfig.for_model(model_type, **json.loads(json.dumps(common | fields)))


def hf_model(config):
    """Random weights that leave nothing near zero or one: norms, biases and logits are all of a visible size."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert model.dtype == torch.float32
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * noise)
            else:
                weight.copy_(noise * (0.3 if weight.ndim == 1 or "embed" in name else 1.5 * weight.shape[1] ** -0.5))
    return model


def old_spelling(config):
    """A ``config.json`` as transformers wrote it before version 5: theta stands beside ``rope_scaling``."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    if config["model_type"] == "phi3":
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        rope.pop("original_max_position_embeddings", None)  # stood, and stands, outside
        rope["type"] = rope.pop("rope_type")
    default = rope.get("rope_type", rope.get("type")) == "default"
    config["rope_scaling"] = None if default else rope
    return config


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, mesh):
    """(theirs, ours, our parameters): one model, saved by transformers and read by us."""
    folder = tmp_path_factory.mktemp("model")
    theirs = hf_model(hf_config(*CASES[request.param]))
    theirs.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    config = ModelConfig.from_hf(written)
    older = old_spelling(written)
    assert "rope_parameters" in written and "rope_parameters" not in older
    assert ModelConfig.from_hf(older) == config
    # The older spelling is theirs, not our idea of it.
    assert transformers.AutoConfig.for_model(**older).rope_parameters.items() >= theirs.config.rope_parameters.items()

    config = ModelConfig.from_hf({**written, "vocab_size": TOKENS})
    ours = ClaraModel(config, SMALL, "float32")
    with jax.set_mesh(mesh):
        base = load_base(config, jnp.float32, mesh, open_tensors(folder))
        params = initialise_adapters(declare(config, SMALL), base, jax.random.key(0), mesh)
        # Added tokens get the logit 0, so that greedy decoding never chooses them.
        params["tokens"] = jax.tree.map(jnp.zeros_like, params["tokens"])
        yield theirs, ours, params


def prompts(*lengths):
    rng = np.random.default_rng(3)
    return [rng.integers(0, TOKENS, length).astype(np.int32) for length in lengths]


def left_padded(rows, mesh):
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return put_batch((ids, mask), mesh)


def their_logits(model, row):
    """Of one unpadded sequence, float32 [T, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(np.asarray(row))[None].long(), use_cache=False).logits[0].numpy()


def their_continuation(model, row):
    """Greedy tokens, the whole sequence computed anew for each.

    LongRoPE may change tables on the way: then what counts is the released code's way, generation from embeddings, in
    which a cached key keeps the table it was read with.
    """
    if "short_factor" in (model.config.rope_parameters or {}):
        embeddings = model.get_input_embeddings()(torch.tensor(np.asarray(row))[None].long())
        mask, unknown = torch.ones(embeddings.shape[:2], dtype=torch.long), list(range(TOKENS, ROWS))
        limits = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "suppress_tokens": unknown, "pad_token_id": 0}
        return model.generate(inputs_embeds=embeddings, attention_mask=mask, **limits)[0].tolist()
    row = list(row)
    for _ in range(NEW_TOKENS):
        row.append(int(np.argmax(their_logits(model, row)[-1, :TOKENS])))
    return row[-NEW_TOKENS:]


def our_logits(model, params, ids, mask):
    states, _ = jax.jit(lambda p, i, m: model.forward(p, "generator", model.embed(p, i), m))(params, ids, mask)
    return np.asarray(join_logits(*model.logits(params, states)))


def test_logits(case, mesh):
    theirs, ours, params = case
    rows = prompts(5, 17, 32, 33, 48)
    ids, mask = left_padded(rows, mesh)
    logits = our_logits(ours, params, ids, mask)
    worst = 0.0
    for i, row in enumerate(rows):
        expected = their_logits(theirs, row)[:, :TOKENS]
        assert np.std(expected) > 1
        worst = max(worst, np.max(np.abs(logits[i, -len(row) :, :TOKENS] - expected)))
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-4


def test_greedy_tokens(case, mesh):
    theirs, ours, params = case
    rows = prompts(5, 13, 25, 40)  # the second reaches LongRoPE's 32 positions, the third crosses them
    ids, mask = left_padded(rows, mesh)
    memories = np.zeros((len(rows), 1, SMALL.memory_tokens, ours.config.embed_dim), np.float32)
    nowhere, memories = put_batch((np.full(ids.shape, -1, np.int32), memories), mesh)
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    out = generate(ours, params, ids, mask, nowhere, memories, np.zeros(len(rows), np.uint32), sampling, (TOKENS,))
    expected = [their_continuation(theirs, row) for row in rows]
    np.testing.assert_array_equal(out.tokens, expected)
    assert len({token for row in expected for token in row}) > NEW_TOKENS  # not one token again and again


@pytest.mark.parametrize("missing_bos", ["omit", "memory_token"])
@pytest.mark.parametrize("tied", [True, False])
def test_padded_tables_and_a_tokenizer_without_bos(tied, missing_bos, tmp_path, mesh):
    """As in Qwen: the special tokens follow the tokenizer's, not the table's rows; logits have columns for them."""
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    size = len(tokenizer)
    theirs = hf_model(hf_config("qwen2", {"vocab_size": size + 37, "tie_word_embeddings": tied}))
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    clara = dataclasses.replace(SMALL, missing_bos=missing_bos)
    with jax.set_mesh(mesh):
        bundle = opening.from_base(str(tmp_path), clara, mesh, "float32")
        ours, params = bundle.tokenizer, bundle.params
        names = ["<MEM0>", "<MEM1>", "<MEM2>", "<MEM3>", "<AE>", "<ENC>", "<SEP>"]
        assert ours.special_ids == {name: size + i for i, name in enumerate(names)}
        assert ours.bos_id == (None if missing_bos == "omit" else size)
        assert ours.eos_id == tokenizer.eos_token_id and bundle.model.config.vocab_size == size
        assert params["base"]["embed"]["table"].shape == (size, 64)

        # The released code resizes the tables to the tokenizer with its special tokens. So is theirs, with our rows.
        theirs.resize_token_embeddings(size + len(names), mean_resizing=False)
        rows = np.concatenate([params["tokens"]["memory"], params["tokens"]["markers"]])
        with torch.no_grad():
            theirs.get_input_embeddings().weight[size:] = torch.tensor(rows)
            if not tied:
                theirs.get_output_embeddings().weight[size:] = torch.tensor(np.asarray(params["tokens"]["output"]))
        row = np.concatenate([prompts(12)[0], np.arange(size, size + len(names), dtype=np.int32)])
        ids, mask = left_padded([row, row[-4:]], mesh)
        logits = our_logits(bundle.model, params, ids, mask)
        assert logits.shape == (2, len(row), size + len(names))
        np.testing.assert_allclose(logits[0], their_logits(theirs, row), atol=1e-4)
        np.testing.assert_allclose(logits[1, -4:], their_logits(theirs, row[-4:]), atol=1e-4)
