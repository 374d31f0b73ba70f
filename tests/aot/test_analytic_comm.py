"""What a step sends is what pencil and paper say, and never a batch's activations, ids or logits."""

import dataclasses
import math

import pytest

from clara_jax.aot.hlo import HloModule
from clara_jax.aot.hlo_cost import collectives, totals
from clara_jax.aot.lowering import inference, train_step
from clara_jax.aot.workload import stage_shapes
from clara_jax.chips import topology_devices
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.input_pipeline.records import RANKING_STAGES
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import make_mesh
from tests.aot.analytic_comm import passes, step_bytes
from tests.aot.test_planning import BASE, lower, needs_libtpu
from tests.configurations import changed, stage

WIDE = BASE | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "num_key_value_heads": 4}
MODEL = ClaraModel(ModelConfig.from_hf(WIDE), ClaraConfig(doc_max_length=16, compress_rate=4, lora_rank=4))
# Sizes of which no product is the size of a weight.
ROWS, SHAPES = 24, Shapes(documents=5, encoder_width=19, query_width=13, prompt_length=29, target_length=7)


# A CPU's collectives are there before LLVM is asked for code, which takes it a minute where it optimizes.
HASTY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compiled(name, mesh, model=MODEL, **options):
    shapes = SHAPES if name in RANKING_STAGES else dataclasses.replace(SHAPES, query_width=0)
    text = lower(name, mesh, model, shapes, ROWS).compile(options).as_text()
    counted = step_bytes(model, stage(name, optimizer=dict(batch_size=ROWS)), shapes, ROWS, mesh)
    return collectives(HloModule.parse(text), mesh.size), counted


def check_no_batch(found):
    """A collective of arrays of all rows would be as long as they are, or larger than any weight."""
    clara, documents = MODEL.clara, ROWS * SHAPES.documents
    tokens = {
        documents * (SHAPES.encoder_width + clara.memory_tokens),
        ROWS * (SHAPES.query_width + clara.memory_tokens),
        ROWS * SHAPES.prompt_length,
        ROWS * SHAPES.target_length,
    }
    largest = MODEL.config.vocab_size * MODEL.config.embed_dim
    for one in found:
        for shape in one.shapes:
            # XLA on CPU ranks the scores of all rows in one place: numbers, not states.
            assert shape == (ROWS, SHAPES.documents) or not {ROWS, documents, *tokens} & set(shape), one
            assert math.prod(shape) <= largest, one


@pytest.mark.parametrize(
    ("stage", "sizes"), [pytest.param("scp", (8, 1), marks=pytest.mark.slow), ("end_to_end", (4, 2))]
)
def test_no_collective_carries_the_batch(stage, sizes):
    found, _ = compiled(stage, make_mesh(*sizes), **HASTY)
    assert found
    check_no_batch(found)


@needs_libtpu
@pytest.mark.parametrize(
    ("stage", "sizes"), [("scp", (8, 1)), pytest.param("end_to_end", (4, 2), marks=pytest.mark.slow)]
)
def test_a_step_for_a_tpu_sends_what_is_counted(stage, sizes):
    found, counted = compiled(stage, make_mesh(*sizes, devices=topology_devices("v5e:2x4")))
    check_no_batch(found)
    assert sum(totals(found).values()) == pytest.approx(sum(counted.values()), rel=0.1)


def test_counts_by_hand():
    """One pass of documents and one of prompts, both there and back, over eight devices."""
    config, mesh = MODEL.config, make_mesh(8, 1)
    counted = step_bytes(MODEL, stage(optimizer=dict(batch_size=ROWS)), SHAPES, ROWS, mesh)
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block = config.embed_dim * (2 * heads + 2 * kv + 3 * config.mlp_dim)
    assert counted["base"] == 2 * 4 * config.layers * block * 7 / 8
    assert counted["tables"] == 2 * 3 * config.vocab_size * config.embed_dim * 7 / 8
    # A of q, k, v, gate, up and B of o, down, each there and back in both passes.
    assert counted["adapters"] == 2 * 4 * config.layers * 7 * config.embed_dim * 4 * 7 / 8
    assert counted["activations"] == 0


@pytest.mark.parametrize("name", ["scp", "end_to_end"])
def test_prompts_of_texts_are_the_only_pass(name):
    as_text = stage(name, data=dict(documents="text"), optimizer=dict(batch_size=8), topk=dict(k=2))
    clara = dataclasses.replace(MODEL.clara, max_length=200)
    shapes = stage_shapes(as_text, clara, text=20, target=10)
    assert shapes == Shapes(0, 0, 0, (1 if name == "scp" else 2) * 16 + 30, 10)
    assert [tuple(entry) for entry in passes(MODEL, as_text, shapes, 8)] == [
        ("generator", 8 * shapes.prompt_length, True)
    ]
    with pytest.raises(ClaraError, match="2 x 16 document's tokens, 20 of text and 200 of target"):
        stage_shapes(dataclasses.replace(as_text, name="instruct"), clara, text=20, target=200)
    program = train_step(MODEL, as_text, shapes, make_mesh(4, 2))
    assert program.rows == 8 and program.model_flops > 0
    (decode,) = inference(MODEL, as_text, shapes, make_mesh(4, 2))
    assert decode.name == "decode"


def test_stored_memories_are_read_and_not_compressed():
    trained = stage("end_to_end", optimizer=dict(batch_size=8), topk=dict(k=2, candidates=SHAPES.documents))
    stored = changed(trained, data=dict(memories="run"))
    assert [step.role for step in passes(MODEL, stored, SHAPES, 8)] == ["query_reasoner", "generator"]
    less, more = (train_step(MODEL, config, SHAPES, make_mesh(4, 2)) for config in (stored, trained))
    assert less.model_flops < more.model_flops and len(less.lowered.as_text()) < len(more.lowered.as_text())


def test_what_is_split_over_two_axes_is_counted_once():
    trained = stage("end_to_end", optimizer=dict(batch_size=ROWS))
    one, two = (step_bytes(MODEL, trained, SHAPES, ROWS, make_mesh(*sizes)) for sizes in ((8, 1), (4, 2)))
    assert two["base"] == pytest.approx(one["base"] / 2 * (3 / 4) / (7 / 8))
    assert two["activations"] > 0
