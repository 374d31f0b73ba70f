"""Model FLOPs: numbers worked out by hand, and those of the programs that XLA compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.chips import peak_flops
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, StoredMemories, memory_at_end
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, split
from clara_jax.method.stages import STAGES, Objective, counts
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import initialise
from clara_jax.model.sharding import put_batch
from clara_jax.training import throughput
from clara_jax.training.step import make_loss
from clara_jax.training.throughput import Work, adapter_weights, block_weights, blocks_flops, step_flops
from tests.model.test_config import MISTRAL_7B

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": True,
}
# q 8·8, k and v 8·4 each, o 8·8, gate, up and down 8·10 each.
WEIGHTS = 64 + 32 + 32 + 64 + 80 + 80 + 80
# Of rank 2: in + out of the same seven maps.
ADAPTER = 2 * (16 + 12 + 12 + 16 + 18 + 18 + 18)
EVERYTHING = ("base", "lora/compressor", "lora/generator", "tokens/memory")


def make_config(**changes):
    return ModelConfig.from_hf(TINY | changes)


def make_batch(rows, documents, document, query, prompt, labels, memory_tokens=4, vocabulary=50):
    """Rows without padding; all positions behind the memories are text."""

    def ids(*shape):
        return (np.arange(np.prod(shape), dtype=np.int32) % vocabulary).reshape(shape)

    index = np.full((rows, prompt), -1, np.int32)
    index[:, 1 : 1 + memory_tokens] = np.arange(memory_tokens)

    def texts(*shape):
        return Sequences(ids(*shape), np.ones(shape, np.int32), memory_at_end(shape, memory_tokens))

    places = np.tile(np.arange(prompt - labels, prompt, dtype=np.int32), (rows, 1))
    return Batch(
        documents=texts(rows, documents, document),
        document_valid=np.ones((rows, documents), bool),
        query=texts(rows, query),
        prompt=PromptBatch(ids(rows, prompt), np.ones((rows, prompt), np.int32), index, ids(rows, labels), places),
        positives=np.eye(documents, dtype=bool)[np.zeros(rows, int)],
        example_ids=np.arange(rows, dtype=np.int32)[:, None],
    )


def test_weights_by_hand():
    assert block_weights(make_config()) == WEIGHTS
    assert adapter_weights(make_config(), 2) == ADAPTER
    fused = make_config(model_type="phi3", tie_word_embeddings=False)
    assert block_weights(fused) == WEIGHTS
    # q, k and v share an A, and so do gate and up: 8 inputs are counted once for each.
    assert adapter_weights(fused, 2) == ADAPTER - 2 * (8 + 8 + 8)
    wide = make_config(model_type="qwen3", head_dim=6)
    assert block_weights(wide) == 8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 80


def test_tokens_and_pairs_of_masks():
    mask = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    assert throughput.work(mask) == Work(8, 6 + 15)
    assert throughput.work(mask[None]) == Work(8, 6 + 15)
    # Five tokens see 1, 2, 2, 2 and 2 of them; three see 1, 2 and 2.
    assert throughput.work(mask, window=2) == Work(8, 5 + 9)
    assert throughput.work(mask, window=9) == Work(8, 21)
    packed = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32)
    assert throughput.work(packed) == Work(9, 3 + 6 + 10)
    assert throughput.work(packed, window=3) == Work(9, 3 + 6 + 9)
    assert throughput.work(np.zeros((2, 4), np.int32)) == Work(0, 0)


def test_a_step_by_hand():
    """Two documents of 6 tokens, a question of 5, a prompt of 9 with 3 labels, in a row."""
    config, batch = make_config(), make_batch(1, 2, 6, 5, 9, 3)
    attention = 4 * 4 * 2  # 4 H C for a pair
    document = (2 * 6, 2 * 21)
    head = 2 * 50 * 8 * 3

    def forward(tokens, pairs):
        return 3 * (2 * (WEIGHTS + ADAPTER) * tokens + attention * pairs)

    def lora(tokens, pairs):
        return 3 * ((4 * WEIGHTS + 6 * ADAPTER) * tokens + 3 * attention * pairs)

    def everything(tokens, pairs):
        return 3 * (6 * (WEIGHTS + ADAPTER) * tokens + 3 * attention * pairs)

    def frozen(tokens, pairs):
        return 3 * (4 * (WEIGHTS + ADAPTER) * tokens + 3 * attention * pairs)

    question, prompt = (5, 15), (9, 45)

    def flops(stage, trains=None, arrays=batch):
        return step_flops(config, 2, stage, trains or STAGES[stage].trains, arrays)

    for stage in ("scp", "instruct"):
        assert flops(stage) == lora(*document) + lora(*prompt) + 2 * head
        assert flops(stage, EVERYTHING) == everything(*document) + everything(*prompt) + 3 * head
    assert flops("scp", ("lora/generator",)) == forward(*document) + lora(*prompt) + 2 * head
    assert flops("scp", ("tokens/memory",)) == frozen(*document) + frozen(*prompt) + 2 * head
    assert flops("end_to_end") == forward(*document) + lora(*question) + lora(*prompt) + 2 * head
    assert flops("end_to_end", ("lora/query_reasoner",)) == (
        forward(*document) + lora(*question) + frozen(*prompt) + 2 * head
    )
    assert flops("retrieval") == forward(*document) + lora(*question)
    kept = dataclasses.replace(batch, documents=StoredMemories(np.zeros((1, 2, 4, 8))))
    assert flops("end_to_end", arrays=kept) == lora(*question) + lora(*prompt) + 2 * head
    text = dataclasses.replace(batch, documents=None, query=None)
    assert flops("end_to_end", ("lora/generator",), text) == lora(*prompt) + 2 * head


def test_padding_is_not_counted():
    config, batch = make_config(), make_batch(2, 2, 6, 5, 9, 3)
    short = make_batch(1, 2, 6, 5, 9, 3)
    for part in (batch.documents, batch.query, batch.prompt):
        part.segment_ids[1] = 0
    batch.prompt.labels[1] = -100
    for stage, definition in STAGES.items():
        assert step_flops(config, 2, stage, definition.trains, batch) == step_flops(
            config, 2, stage, definition.trains, short
        )


def test_mistral_7b_is_4n_per_token():
    """6.98 billion weights in the blocks. At 2,048 tokens attention adds 5.8 hundredths of 4N, an adapter of rank
    16 nine thousandths."""
    config = ModelConfig.from_hf(MISTRAL_7B)
    weights = 32 * block_weights(config)
    assert weights == 6_979_321_856
    assert 32 * adapter_weights(config, 16) == 41_943_040
    done = throughput.work(np.ones((1, 2048), bool))
    per_token = blocks_flops(config, 16, done, True, ("lora",)) / 2048
    attention = 3 * 4 * 4096 * 32 * 2049 / 2
    assert per_token == 4 * weights + 6 * 41_943_040 + attention
    assert attention / (4 * weights) == pytest.approx(0.0577, abs=1e-4)


@pytest.mark.parametrize(
    "kind,peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("TPU v4 lite", None),
        ("cpu", None),
        ("TPU v99", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_this_machine_has_no_peak():
    assert peak_flops(jax.devices()[0].device_kind) is None


# The others have the loss of scp.
CASES = [("scp", None), ("end_to_end", None), ("scp", EVERYTHING)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in (("retrieval", None), ("scp", ("tokens/memory",)))]


@pytest.mark.parametrize("stage,trains", CASES)
def test_xla_counts_the_same(stage, trains, mesh, monkeypatch):
    """One block, so that the scan's body runs once; XLA counts a loop's body once, however often it runs."""
    sizes = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 1, "vocab_size": 512}
    config, clara = make_config(**sizes), ClaraConfig(doc_max_length=64, compress_rate=16, lora_rank=8)
    model = ClaraModel(config, clara, "float32", attention="xla")
    batch = make_batch(2, 2, 64, 32, 96, 32, vocabulary=512)
    if stage == "scp":
        batch = dataclasses.replace(batch, query=None, positives=None)
    trains = trains or STAGES[stage].trains
    params = initialise(declare(config, clara, jnp.float32), jax.random.key(0), mesh)
    gradient = jax.value_and_grad(make_loss(model, STAGES[stage], Objective(top_k=1)), has_aux=True)
    with jax.set_mesh(mesh):
        placed = put_batch(batch, mesh)
        compiled = jax.jit(gradient).lower(*split(params, trains), placed, counts(placed), None).compile()
    counted = compiled.cost_analysis()["flops"]

    def all_pairs(mask, window):  # XLA's attention computes the masked pairs, too
        return Work(mask.size, mask.size * mask.shape[-1])

    monkeypatch.setattr(throughput, "work", all_pairs)
    expected = step_flops(config, clara.lora_rank, stage, trains, batch)
    if stage != "retrieval":  # the logits are made again in the backward pass
        expected += 2 * 512 * 256 * batch.prompt.labels.size
    assert counted == pytest.approx(expected, rel=0.025)
