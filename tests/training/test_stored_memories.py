"""Memories that were compressed before training: equal losses, gradients and held-out values; stopped and resumed."""

import dataclasses

import jax
import numpy as np
import pytest

from clara_jax.checkpoints import opening
from clara_jax.configs.common import merged
from clara_jax.errors import ClaraError
from clara_jax.inference import memory_cache as inference_memories
from clara_jax.inference import memory_store
from clara_jax.inference.memory_store import document_keys
from clara_jax.input_pipeline.batches import StoredMemories, collate, plan_shapes
from clara_jax.input_pipeline.buckets import shapes_for, without_texts
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.records import read_records
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective, counts
from clara_jax.model.sharding import put_batch
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.loop import run
from clara_jax.training.metrics import read_metrics
from clara_jax.training.step import example_keys, make_loss
from clara_jax.training.stopping import Stopped, StopSignal
from clara_jax.training.stored_memories import open_memories
from tests import tiny
from tests.configurations import stage

CLARA = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, lora_dropout=0.1, max_length=256)
OBJECTIVE = Objective(top_k=2)
COUNT, CANDIDATES = 12, 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("memories")
    tiny.write_base(path / "base")
    return tiny.write_records(path, COUNT, CANDIDATES)


def make_bundle(directory, mesh):
    """Random adapters: fresh ones do nothing, and all roles would be one."""
    bundle = opening.from_base(str(directory / "base"), CLARA, mesh, "float32")
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: jax.device_put(np.float32(rng.normal(0, 0.3, x.shape)), x.sharding), bundle.params["lora"]
    )
    return dataclasses.replace(bundle, params={**bundle.params, "lora": noise})


def make_stage(directory, store, name="end_to_end", **fields):
    shared = dict(
        data=dict(train=(str(directory / "end_to_end.jsonl"),), memories=str(store), buckets=2),
        optimizer=dict(batch_size=8, learning_rate=1e-2),
        topk=dict(k=2, candidates=CANDIDATES),
    )
    return stage(name, **merged(shared, fields))


def make_examples(directory, bundle, stage):
    records = read_records(str(directory / "end_to_end.jsonl"), stage)
    return encode_records(records, bundle.tokenizer, Encoding(stage, OBJECTIVE.top_k, CANDIDATES))


def documents_of(examples):
    return [ids for example in examples for ids in example.documents]


def value_and_gradient(bundle, stage, batch):
    loss = make_loss(bundle.model, STAGES[stage], OBJECTIVE)

    def gradient(trained, frozen, batch, key):
        return jax.value_and_grad(loss, has_aux=True)(
            trained, frozen, batch, counts(batch), example_keys(key, batch.example_ids)
        )

    with jax.set_mesh(bundle.mesh):
        key = jax.device_put(jax.random.key(3), jax.NamedSharding(bundle.mesh, jax.P()))
        placed = (*split(bundle.params, STAGES[stage].trains), put_batch(batch, bundle.mesh), key)
        return jax.device_get(jax.jit(gradient)(*placed))


@pytest.mark.parametrize(
    ("stage", "devices"),
    [
        ("end_to_end", "one"),
        pytest.param("retrieval", "one", marks=pytest.mark.slow),
        pytest.param("end_to_end", "eight", marks=pytest.mark.slow),
        pytest.param("retrieval", "eight", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_those_of_compressing_in_the_step(directory, tmp_path, mesh, mesh222, stage, devices):
    bundle = make_bundle(directory, {"one": mesh, "eight": mesh222}[devices])
    examples = make_examples(directory, bundle, stage)
    # A row with fewer documents, and a batch that is filled up.
    short = dataclasses.replace(examples[0], documents=examples[0].documents[:3], positives=(0,))
    examples = [short, *examples[1:-1]]
    memories = open_memories(
        make_stage(directory, tmp_path / "store", stage), bundle, documents_of(examples), StopSignal()
    )
    shapes = plan_shapes(examples, bundle.tokenizer)
    plain = collate(examples, shapes, bundle.tokenizer, COUNT)
    narrow = shapes_for(without_texts(sizes_of(examples)), bundle.tokenizer)
    stored = collate(examples, narrow, bundle.tokenizer, COUNT, memories)
    assert isinstance(stored.documents, StoredMemories) and narrow.encoder_width == 0
    assert stored.tokens == plain.tokens - plain.documents.segment_ids.sum()
    ((loss, terms), gradient), (other, found) = (value_and_gradient(bundle, stage, b) for b in (plain, stored))
    assert other[0] == pytest.approx(loss, rel=1e-5)
    for name, value in terms.items():
        assert other[1][name] == pytest.approx(value, rel=1e-5), name
    for name, leaf in gradient.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5 * np.abs(leaf).max(), err_msg=name)


def test_a_stop_keeps_what_is_done_and_the_next_call_does_the_rest(directory, tmp_path, mesh, monkeypatch):
    monkeypatch.setattr(memory_store, "ROWS", 4)
    bundle = make_bundle(directory, mesh)
    documents = documents_of(make_examples(directory, bundle, "end_to_end"))
    distinct = len(np.unique(document_keys(documents)))
    compressed = []

    def watched(model, params, role, texts, *arguments):
        for places, memories in encode_texts(model, params, role, texts, *arguments):
            compressed.extend(places)
            yield places, memories
            if len(compressed) == 4:
                stop._received = True

    encode_texts = inference_memories.encode_texts
    monkeypatch.setattr(inference_memories, "encode_texts", watched)
    stage = make_stage(directory, tmp_path / "store", optimizer=dict(batch_size=1))
    stop = StopSignal()
    with pytest.raises(
        Stopped, match=f"stopped while documents are compressed, 8 of {distinct} are in {tmp_path}/store"
    ):
        open_memories(stage, bundle, documents, stop)
    stop = StopSignal()
    resumed = open_memories(stage, bundle, documents, stop)(documents)
    assert len(compressed) == distinct
    whole = make_stage(directory, tmp_path / "whole", optimizer=dict(batch_size=1))
    np.testing.assert_allclose(resumed, open_memories(whole, bundle, documents, StopSignal())(documents), atol=1e-5)
    del compressed[:]
    open_memories(stage, bundle, documents, StopSignal())
    assert not compressed


def test_a_compressor_that_was_trained_on_is_refused_other_adapters_are_not(directory, tmp_path, mesh):
    bundle = make_bundle(directory, mesh)
    documents = documents_of(make_examples(directory, bundle, "end_to_end"))
    stage = make_stage(directory, tmp_path / "store")
    open_memories(stage, bundle, documents, StopSignal())

    def changed(role):
        lora = dict(bundle.params["lora"])
        lora[role] = jax.tree.map(lambda x: x + 1, lora[role])
        return dataclasses.replace(bundle, params={**bundle.params, "lora": lora})

    for role in ("query_reasoner", "generator"):
        assert changed(role).fingerprint() != bundle.fingerprint()
        open_memories(stage, changed(role), documents, StopSignal())
    with pytest.raises(ClaraError, match="holds memories of another compressor"):
        open_memories(stage, changed("compressor"), documents, StopSignal())


@pytest.mark.parametrize("name", ["retrieval", pytest.param("end_to_end", marks=pytest.mark.slow)])
def test_a_run_with_memories_is_the_run_that_compresses_in_its_steps(name, directory, tmp_path, mesh, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])  # a run takes all there are

    def train(place, memories):
        data = (str(directory / "end_to_end.jsonl"),)
        stage_config = make_stage(directory, memories, name, evaluation=dict(data=data, answers=0))
        base = ModelSection(str(directory / "base"), "float32")
        options = dict(mesh=(1, 1), reporting=dict(progress=False, tensorboard=False))
        run(RunConfig(stages=(stage_config,), model=base, clara=CLARA, **options), tmp_path / place, StopSignal())
        return read_metrics(tmp_path / place / "metrics.jsonl")

    names = ("loss", "grad_norm", "recall", "eval_loss", "eval_ce_no_memory", "eval_ce_other_memory", "eval_recall@1")
    compared = 0
    # In the run directory, below the compressor's fingerprint; or where it is said.
    store = "run" if name == "retrieval" else tmp_path / "store"
    for plain, stored in zip(train("in_step", ""), train("stored", store), strict=True):
        for key in (key for key in names if key in plain):
            assert stored[key] == pytest.approx(plain[key], rel=1e-4), key
            compared += 1
        if "padding" in plain:
            assert stored["tokens"] < plain["tokens"]
    place = tmp_path / "stored" / "memories"
    if name == "retrieval":
        trained = opening.load(tmp_path / "stored", mesh=mesh)
        assert [path.name for path in place.iterdir()] == [trained.compressor_fingerprint()[:12]]
    else:
        assert not place.exists()
    assert compared == 4 * 3 + 2 * (4 if name == "end_to_end" else 2)


def test_only_where_the_compressor_is_frozen(directory):
    make_stage(directory, "store", "retrieval")
    with pytest.raises(
        ClaraError, match="config.scp.data.memories is 'store'; scp trains lora/compressor, tokens/memory"
    ):
        make_stage(directory, "store", "scp")
    trains = ("lora/query_reasoner", "lora/generator", "tokens/memory")
    with pytest.raises(ClaraError, match="end_to_end trains tokens/memory"):
        make_stage(directory, "store", trains=trains)
