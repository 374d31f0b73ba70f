"""Memories in proportion to a text's length: as many as its tokens ask for, everywhere, and as if there were no room
for more."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.checkpoints import exporting, opening
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline import packing, prompts
from clara_jax.input_pipeline.batches import collate, plan_shapes, with_memory
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.records import parse_record
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.memory_count import PROPORTIONAL, memories_of
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.compressor import encode
from clara_jax.method.reranker import relevance_scores
from clara_jax.method.stages import STAGES, Objective, counts, objective_value
from clara_jax.metrics.controls import shuffled
from clara_jax.model.sharding import put_batch
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval import ann
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import ENCODINGS, MemoryEncoding
from clara_jax.retrieval.exact_search import ExactSearch
from clara_jax.retrieval.verifying import damaged_chunks
from clara_jax.text.documents import CorpusDocument
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.loop import run
from clara_jax.training.metrics import read_metrics
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.stopping import StopSignal
from tests import exports, tiny

LENGTH, RATE = 48, 4
M = LENGTH // RATE
CLARA = ClaraConfig(
    LENGTH,
    RATE,
    lora_rank=4,
    lora_dropout=0.0,
    different_mem_tokens=False,
    memory_map="affine",
    max_length=512,
    memory_count=PROPORTIONAL,
)
TEXTS = ["Ada", tiny.document(1)[:30], tiny.document(2), " ".join(tiny.document(i) for i in range(6))]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return exports.bundle(tiny.write_base(tmp_path_factory.mktemp("base") / "base"), CLARA)


def test_the_number_is_tokens_over_rate_rounded_up_from_one_to_m():
    assert [memories_of(n, 4, 16) for n in (0, 1, 4, 5, 8, 9, 16, 40)] == [1, 1, 1, 2, 2, 3, 4, 4]
    tokenizer = ClaraTokenizer(tiny.tokenizer(), LENGTH, M, different_mem_tokens=False, memory_count=PROPORTIONAL)
    for text, ids in zip(TEXTS, tokenizer.encode_documents(TEXTS), strict=True):
        tokens = len(tiny.tokenizer()(text)["input_ids"])
        assert tokenizer.memories_of(len(ids)) == min(M, -(-tokens // RATE)), text
    fewer = tokenizer.with_memories(LENGTH, 2)
    assert fewer.memory_count == PROPORTIONAL
    assert [fewer.memories_of(len(ids)) for ids in tokenizer.encode_documents(TEXTS)] == [1, 1, 1, 2]


def encoded(bundle, texts, room=None, **changes):
    """Memories [n, M, E] of texts, all in one batch."""
    clara = dataclasses.replace(bundle.model.clara, **changes)
    model = dataclasses.replace(bundle.model, clara=clara)
    ids = [np.array(one, np.int32) for one in bundle.tokenizer.encode_documents(texts)]
    width = max(map(len, ids)) + 5
    with jax.set_mesh(bundle.mesh):
        batch = put_batch(with_memory([*ids, None], width, bundle.tokenizer, room), bundle.mesh)
        return jax.tree.map(lambda x: np.asarray(x)[:-1, 0], encode(model, bundle.params, "compressor", batch))


@pytest.mark.parametrize("places", ["end", "runs"])
@pytest.mark.parametrize("memory_map", ["state", "affine"])
def test_memories_are_those_of_a_model_with_room_for_no_more(bundle, places, memory_map):
    if memory_map == "state":
        tokens = {name: leaf for name, leaf in bundle.params["tokens"].items() if name != "map"}
        bundle = dataclasses.replace(bundle, params={**bundle.params, "tokens": tokens})
    changes = dict(memory_places=places, memory_map=memory_map)
    found = encoded(bundle, TEXTS, **changes)
    for row, ids in enumerate(bundle.tokenizer.encode_documents(TEXTS)):
        count = bundle.tokenizer.memories_of(len(ids))
        # A model whose full document has so many memories.
        exact = bundle.with_memories(LENGTH, LENGTH, "fixed")
        tokenizer = exact.tokenizer.with_memories(LENGTH, count)
        alone = encoded(dataclasses.replace(exact, tokenizer=tokenizer), [TEXTS[row]], **changes)
        np.testing.assert_allclose(found.memory[row, :count], alone.memory[0], atol=2e-5)
        np.testing.assert_allclose(found.memory_mean[row], alone.memory_mean[0], atol=2e-5)
        np.testing.assert_allclose(found.text_mean[row], alone.text_mean[0], atol=2e-5)
        assert not found.memory[row, count:].any() and found.memory[row, :count].any(axis=1).all()


def test_rows_need_no_more_room_than_their_memories(bundle):
    found = encoded(bundle, TEXTS[:2])
    narrow = encoded(bundle, TEXTS[:2], room=bundle.tokenizer.memories_of(30))
    assert bundle.tokenizer.memories_of(30) < M
    for one, other in zip(found, narrow, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)


def examples(tokenizer, stage, count=6):
    records = []
    for i in range(count):
        documents = [TEXTS[(i + j) % 4] for j in range(1 if stage == "scp" else 3)]
        fields = {"question": "Where was she born?", "docs": documents, "answer": "in Oslo " * (i + 1)}
        records.append(parse_record(fields | {"pos_index": [i % len(documents)]}, stage, f"q.jsonl:{i + 1}"))
    return encode_records(records, tokenizer, Encoding(stage, 2))


def loss(bundle, stage, batch, objective):
    with jax.set_mesh(bundle.mesh):
        placed = put_batch(batch, bundle.mesh)
        terms = jax.jit(STAGES[stage].loss, static_argnums=(0, 3))(bundle.model, bundle.params, placed, objective, None)
        value, means = objective_value(STAGES[stage], objective, terms, counts(placed))
    return float(value), {name: float(term) for name, term in means.items()}


@pytest.mark.parametrize("stage", ["instruct", "end_to_end"])
def test_places_of_memories_that_do_not_exist_change_nothing(bundle, stage):
    """The loss is that of prompts which were written without them."""
    tokenizer, objective = bundle.tokenizer, Objective(top_k=2, marginal_weight=0.3 * (stage == "end_to_end"))
    for example in examples(tokenizer, stage, 2):
        batch = collate([example], plan_shapes([example], tokenizer), tokenizer, 1)
        value, terms = loss(bundle, stage, batch, objective)
        if stage == "instruct":
            chosen = range(len(example.documents))
        else:
            clara = Clara(bundle)
            texts = [TEXTS[(example.index + j) % 4] for j in range(3)]
            chosen = clara.rank(["Where was she born?"], clara.compress(texts), k=2).indices[0]
        there = [tokenizer.memories_of(len(example.documents[i])) for i in chosen]
        slot, place = example.memory_index // M, example.memory_index % M
        kept = (example.memory_index < 0) | (place < np.array(there)[np.maximum(slot, 0)])
        assert not kept.all()
        names = ("prompt_ids", "memory_index", "labels")
        short = dataclasses.replace(example, **{name: getattr(example, name)[kept] for name in names})
        expected, expected_terms = loss(
            bundle, stage, collate([short], plan_shapes([short], tokenizer), tokenizer, 1), objective
        )
        assert value == pytest.approx(expected, abs=2e-5)
        assert terms == pytest.approx(expected_terms, abs=2e-5)


def test_packed_rows_have_the_loss_of_rows_of_their_own(bundle):
    tokenizer, objective = bundle.tokenizer, Objective()
    some = examples(tokenizer, "scp")
    sizes = sizes_of(some)
    row = packing.plan_row(sizes, M, 160)
    rows = [[some[i] for i in places] for places in packing.pack(sizes, M, row)]
    assert len(rows) < len(some)
    packed = loss(bundle, "scp", packing.collate_packed(rows, len(rows), row, tokenizer), objective)
    alone = loss(bundle, "scp", collate(some, plan_shapes(some, tokenizer), tokenizer), objective)
    assert packed[1] == pytest.approx(alone[1], abs=2e-5)


def test_a_question_is_answered_from_the_memories_that_exist(bundle):
    """The prompt has a place for each of them, and the scores are those of late interaction."""
    clara = Clara(bundle, batch_size=2)
    memories = clara.compress(TEXTS)
    made = [bundle.tokenizer.memories_of(len(ids)) for ids in bundle.tokenizer.encode_documents(memories.texts)]
    assert np.any(memories.array != 0, axis=2).sum(axis=1).tolist() == made
    request = clara.request(prompts.question("Where?", 2), memories.array[[0, 2]])
    index = np.array(request.memory_index)
    assert index[index >= 0].tolist() == [*range(made[0]), *range(M, M + made[2])]
    full = bundle.tokenizer.encode_prompt(prompts.question("Where?", 2))
    assert len(request.ids) == len(full.ids) - 2 * M + made[0] + made[2]
    ranking = clara.rank(["Where was Ada born?"], memories, k=len(memories))
    query = clara.encode_questions(["Where was Ada born?"])
    scores = np.asarray(relevance_scores(query, memories.array[None], PROPORTIONAL))[0]
    np.testing.assert_allclose(ranking.scores[0], np.sort(scores)[::-1], atol=1e-5)
    (answer,) = clara.answer(["Where was Ada born?"], memories=memories, k=2, max_new_tokens=3)
    assert [source.text for source in answer.sources] == [memories.texts[i] for i in ranking.indices[0][:2]]


def test_a_prompt_is_too_long_by_the_memories_that_exist(bundle):
    clara = Clara(bundle)
    memories = clara.compress(["Ada"] * 3, ids=["a", "b", "c"])
    asked = prompts.question("Where?", 3)
    length = len(clara.request(asked, memories.array).ids)
    Clara(bundle.with_limits(length, 0.0)).request(asked, memories.array)
    with pytest.raises(ClaraError, match=f"make {length} tokens, above max_length {length - 1}"):
        Clara(bundle.with_limits(length - 1, 0.0)).request(asked, memories.array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three stages, and the records that it is trained on."""
    folder = tmp_path_factory.mktemp("proportional")
    tiny.write_base(folder / "base")
    pool = [{"text": TEXTS[i % 4]} for i in range(8)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in pool))
    asked = [
        {"question": "Where?", "docs": [TEXTS[(i + j) % 4] for j in range(3)], "answer": "Oslo", "pos_index": [0]}
        for i in range(8)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))

    def stage(name, file, **fields):
        files = (f"{folder}/{file}.jsonl",)
        held_out = dict(data=files, limit=2, answers=2)
        groups = dict(optimizer=dict(steps=2, batch_size=2), evaluation=held_out, topk=dict(k=2, candidates=3))
        return StageConfig(name, data=dict(train=files, **fields), **groups)

    stages = (
        stage("autoencode", "pool", further_rates=(8,)),
        stage("retrieval", "asked", memories=f"{folder}/memories"),
        stage("end_to_end", "asked"),
    )
    model = ModelSection(str(folder / "base"), "float32")
    reporting = dict(progress=False, tensorboard=False, show=0)
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:  # runs take all devices; tests have eight fake ones
        patch.setattr(jax, "devices", lambda *args: devices)
        run(RunConfig(stages, model, CLARA, reporting=reporting, mesh=(1, 1)), folder / "run", StopSignal())
        yield folder


def test_every_stage_is_trained_and_measured(folder):
    rows = read_metrics(folder / "run/metrics.jsonl")
    assert sum("loss" in row for row in rows) == 6
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    named = {name for row in rows for name in row}
    assert {"eval_rate_8_ce", "eval_recall@1", "eval_ce_no_memory", "eval_f1", "eval_f1_no_memory"} <= named


def test_a_store_knows_what_its_memories_are(folder, tmp_path):
    made = RagPipeline.open(folder / "run", tmp_path / "s", create=True, memory_count="fixed", encoding="float32")
    assert made.store.encoding.memory_count == "fixed"
    assert RagPipeline.open(folder / "run", tmp_path / "s").clara.bundle.model.clara.memory_count == "fixed"
    with pytest.raises(ClaraError, match="holds memories in fixed number, not proportional"):
        RagPipeline.open(folder / "run", tmp_path / "s", memory_count="proportional")
    rag = RagPipeline.open(folder / "run", tmp_path / "t", create=True, encoding="int8")
    assert rag.store.encoding.memory_count == DocumentStore.open(tmp_path / "t").encoding.memory_count == PROPORTIONAL
    rag.add([CorpusDocument(f"d{i}", "", text, "") for i, text in enumerate(TEXTS[:3])])
    stored = rag.store.memories(["d0#0", "d1#0", "d2#0"])
    made = rag.clara.compress(TEXTS[:3])
    assert ((stored != 0).any(axis=2) == (made.array != 0).any(axis=2)).all(), "int8 keeps which exist"
    sizes = [len(row.as_py()) for row in rag.store._rows("true", ["memory"])["memory"]]
    counts = (made.array != 0).any(axis=2).sum(axis=1)
    assert sorted(sizes) == sorted(counts * (64 + 4)), "a row holds the memories that exist"
    assert damaged_chunks(rag.store) == []
    queries = rag.clara.encode_questions(["Where was Ada born?"])
    found = ExactSearch(rag.store, rag.clara.bundle.mesh, 2**30)(queries, 3)[0]
    expected = relevance_scores(queries, stored[None].astype(np.float32), PROPORTIONAL)[0]
    assert [name for name, _ in found] == [f"d{i}#0" for i in np.argsort(-expected)]
    np.testing.assert_allclose([score for _, score in found], np.sort(expected)[::-1], atol=1e-5)
    ann.build(rag.store)
    hits = rag.retriever("Where was Ada born?", queries[0], 3, ann=True)
    assert [hit.id for hit in hits] == [name for name, _ in found]
    assert rag.answer("Where was Ada born?", k=2, sampling=Sampling(2)).sources


def test_a_model_in_proportion_is_not_trained_on_in_fixed_number_by_accident(folder):
    config = RunConfig(
        (StageConfig("instruct", data=dict(train=(f"{folder}/asked.jsonl",)), optimizer=dict(steps=1)),),
        ModelSection(str(folder / "base"), "float32"),
        dataclasses.replace(CLARA, memory_count="fixed"),
        initial_checkpoint=str(folder / "run"),
        mesh=(1, 1),
    )
    with pytest.raises(ClaraError, match="memory_count is 'fixed', but the checkpoint .* with 'proportional'"):
        run(config, folder / "other", StopSignal())


def test_shuffled_memories_are_as_many_in_each_document():
    memories = np.arange(1, 3 * 4 * 2 + 1, dtype=np.float32).reshape(3, 4, 2)
    memories[1, 2:] = memories[2, 1:] = 0
    found = shuffled(memories, np.random.default_rng(1))
    np.testing.assert_array_equal((found != 0).any(axis=2), (memories != 0).any(axis=2))
    assert sorted(found.reshape(-1).tolist()) == sorted(memories.reshape(-1).tolist()) and (found != memories).any()


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_keep_the_memories_that_exist(name):
    memories = np.random.default_rng(2).normal(size=(4, 5, 33)).astype(np.float32)
    for row, count in enumerate((5, 1, 3, 0)):
        memories[row, count:] = 0
    ragged, fixed = MemoryEncoding(name, 5, 33, PROPORTIONAL), MemoryEncoding(name, 5, 33)
    rows = ragged.encode(memories)
    assert [len(row) for row in rows] == [ragged.size // 5 * count for count in (5, 1, 3, 0)]
    np.testing.assert_array_equal(ragged.decode(rows), fixed.decode(fixed.encode(memories)))
    for wrong in (rows[1][:-1], np.concatenate([rows[0], rows[1]])):
        with pytest.raises(ClaraError, match=f"a memory has {len(wrong)} bytes; it must be up to 5 vectors"):
            ragged.decode([wrong])


def test_models_that_differ_in_it_are_not_taken_for_each_other(bundle, tmp_path):
    fixed = bundle.at_rate(None, "fixed")
    assert fixed.fingerprint() != bundle.fingerprint()
    assert fixed.compressor_fingerprint() != bundle.compressor_fingerprint()
    bundle.save(tmp_path / "saved", "instruct")
    assert opening.load(tmp_path / "saved", bundle.mesh).fingerprint() == bundle.fingerprint()
    exporting.export_peft(bundle, tmp_path / "peft", dtype="float32")
    assert opening.load(tmp_path / "peft", bundle.mesh).model.clara == bundle.model.clara
    plain = dataclasses.replace(bundle.model.clara, memory_map="state")
    other = dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, clara=plain))
    with pytest.raises(ClaraError, match='memory_count is "proportional".*--format peft'):
        exporting.export_released(other, tmp_path / "released")
    with pytest.raises(ClaraError, match="memory_count is 'many'"):
        dataclasses.replace(CLARA, memory_count="many")
    with pytest.raises(ClaraError, match="compress_rate is 0"):
        bundle.at_rate(0)
