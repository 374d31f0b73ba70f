"""A tiny base model as a Hugging Face directory, and records to train on: everything the commands need, made in a
second."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from clara_jax.checkpoints.bundle import Bundle

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
# Its prompts end with a space, which no answer has before it: it is left out (`clara_jax.input_pipeline.turns`).
SPACED_TEMPLATE = CHAT_TEMPLATE.replace("\\n", " ")
PLACES = ["Rouen", "Oslo", "Kyoto", "Lima", "Accra", "Quito", "Perth", "Turin"]
PEOPLE = ["Ada", "Rollo", "Mika", "Ines", "Kofi", "Luis", "Noor", "Gino"]


def document(i: int) -> str:
    return f"{PEOPLE[i % 8]} number {i} was born in {PLACES[(3 * i) % 8]} and works there as a painter."


def tokenizer(chat_template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the records' words, so that every text can be encoded."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(
        [document(i) for i in range(64)] + ["You are a helpful assistant. Background: Question: Where was born?"] * 9,
        trainer,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat_template
    )


def write_base(directory: Path, seed: int = 0, chat_template: str = CHAT_TEMPLATE, **overrides) -> Path:
    """A random Llama of two layers, width 64."""
    directory.mkdir(parents=True, exist_ok=True)
    tok = tokenizer(chat_template)
    tok.save_pretrained(directory)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tok) + len(tok) % 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
    } | overrides
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    e, f, h, g = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    c = e // h
    shapes = {
        "self_attn.q_proj": (h * c, e),
        "self_attn.k_proj": (g * c, e),
        "self_attn.v_proj": (g * c, e),
        "self_attn.o_proj": (e, h * c),
        "mlp.gate_proj": (f, e),
        "mlp.up_proj": (f, e),
        "mlp.down_proj": (e, f),
    }
    tensors = {
        "model.embed_tokens.weight": rng.normal(0, 0.3, (config["vocab_size"], e)),
        "model.norm.weight": np.ones(e),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": rng.normal(0, shape[1] ** -0.5, shape) for name, shape in shapes.items()}
        tensors |= {f"{prefix}{name}.weight": np.ones(e) for name in ("input_layernorm", "post_attention_layernorm")}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = rng.normal(0, 0.3, (config["vocab_size"], e))
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, directory / "model.safetensors")
    return directory


def write_place(folder: Path, config: str) -> Path:
    """A folder with a base, records, and ``config.py``, whose text has places for the names of both."""
    write_base(folder / "base")
    write_records(folder / "data")
    (folder / "config.py").write_text(config.format(base=str(folder / "base"), data=str(folder / "data")))
    return folder


def with_adapters(bundle: Bundle) -> Bundle:
    """The model with adapters that do something, each something else: fresh ones leave all roles as one."""
    adapters = {}
    for number, (role, adapter) in enumerate(bundle.params["lora"].items()):
        adapters[role] = jax.tree.map(
            lambda x, n=number: x + 0.02 * np.cos(np.arange(x.size) + n).reshape(x.shape).astype("f4"), adapter
        )
    adapters = jax.device_put(adapters, jax.tree.map(lambda x: x.sharding, bundle.params["lora"]))
    trained = ("lora/compressor", "lora/generator", "lora/query_reasoner", "tokens/memory")
    return dataclasses.replace(bundle, params=bundle.params | {"lora": adapters}, trained=trained)


def write_records(directory: Path, count: int = 24, candidates: int = 4) -> Path:
    """scp.jsonl, instruct.jsonl, end_to_end.jsonl and, without answers, retrieval.jsonl of ``count`` records each."""
    directory.mkdir(parents=True, exist_ok=True)
    scp, instruct, end_to_end = [], [], []
    for i in range(count):
        question, answer = f"Where was {PEOPLE[i % 8]} number {i} born?", PLACES[(3 * i) % 8]
        if i % 3 == 2:
            scp.append({"data_type": "paraphrase", "question": "", "answers": [document(i)], "docs": [document(i)]})
        else:
            scp.append({"data_type": "qa", "question": [question], "answers": [answer], "docs": [document(i)]})
        positive = i % candidates
        docs = [document(i if j == positive else i + 1 + j) for j in range(candidates)]
        record = {"question": question, "docs": docs, "answer": answer, "gold_answer": answer, "pos_index": [positive]}
        instruct.append(record | {"docs": docs[: 1 + i % 2] if positive <= i % 2 else [document(i)], "pos_index": []})
        end_to_end.append(record)
    retrieval = [{name: record[name] for name in ("question", "docs", "pos_index")} for record in end_to_end]
    for name, records in dict(scp=scp, instruct=instruct, end_to_end=end_to_end, retrieval=retrieval).items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory
