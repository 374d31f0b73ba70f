"""Held-out values: those of the public API and of a hand-made loop; the same on every mesh and however batches are cut;
controls that really take the memories away."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.inference.decode import Sampling, generate
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.input_pipeline.encoding import Encoding, Example, encode_records
from clara_jax.input_pipeline.records import read_records
from clara_jax.method.appendix.gradient_paths import score_gradients
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective, as_text
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.training.evaluate import Evaluation, other_documents
from clara_jax.training.step import make_eval_step
from tests import tiny

CLARA = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, lora_dropout=0.0, max_length=256)
OBJECTIVE = Objective(top_k=2)
COUNT, CANDIDATES = 7, 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    tiny.write_base(path / "base", chat_template=tiny.SPACED_TEMPLATE)  # untrained, it answers differently
    # A record shares documents with the three before and behind it: `make_examples` takes every third.
    return tiny.write_records(path, 3 * COUNT, CANDIDATES)


@functools.cache
def one_device():
    return make_mesh(1, 1, devices=jax.devices()[:1])


@functools.cache
def make_bundle(directory, mesh):
    """Random adapters: fresh ones do nothing, and all roles would be one."""
    bundle = opening.from_base(str(directory / "base"), CLARA, mesh, "float32")
    lora = bundle.params["lora"]
    rng = np.random.default_rng(2)
    noise = jax.tree.map(lambda x: jax.device_put(np.float32(rng.normal(0, 0.3, x.shape)), x.sharding), lora)
    roles = tuple(f"lora/{role}" for role in lora)
    return dataclasses.replace(bundle, params={**bundle.params, "lora": noise}, trained=roles)


@functools.cache
def make_examples(directory, stage):
    """Examples and records. Untrained answers match nothing: every other record asks for what the API answers."""
    name = "end_to_end" if stage == "retrieval" else stage
    records = read_records(str(directory / f"{name}.jsonl"), stage)
    records = records[:COUNT] if stage == "scp" else records[::3]
    if stage in ("instruct", "end_to_end"):
        golds = [(text,) if i % 2 else ("Rouen", "Oslo") for i, text in enumerate(api_answers(directory, stage))]
        records = [dataclasses.replace(r, gold_answers=gold) for r, gold in zip(records, golds, strict=True)]
    tokenizer = make_bundle(directory, one_device()).tokenizer
    return encode_records(records, tokenizer, encoding(stage)), records


def encoding(stage, documents="memory"):
    return Encoding(stage, OBJECTIVE.top_k, CANDIDATES, documents=documents)


@functools.cache
def api_answers(directory, stage):
    records = read_records(str(directory / f"{stage}.jsonl"), stage)[::3]
    questions, documents = [r.questions[0] for r in records], [r.documents for r in records]
    k = OBJECTIVE.top_k if stage == "end_to_end" else None
    answers = Clara(make_bundle(directory, one_device())).answer(questions, documents, k=k, max_new_tokens=6)
    return [answer.text for answer in answers]


def make_evaluation(directory, stage, mesh, batch_size=4, **options):
    bundle, (examples, records) = make_bundle(directory, mesh), make_examples(directory, stage)
    parts = (bundle.model, STAGES[stage], OBJECTIVE, bundle.tokenizer, mesh, examples, records)
    return Evaluation(*parts, encoding(stage), batch_size, max_new_tokens=6, end_ids=bundle.end_ids, **options)


@functools.cache
def measure(directory, stage, mesh, batch_size=4, **options):
    """Values, the evaluation, and its parameters."""
    evaluation = make_evaluation(directory, stage, mesh, batch_size, **options)
    params = split(make_bundle(directory, mesh).params, STAGES[stage].trains)
    with jax.set_mesh(mesh):
        return evaluation(*params), evaluation, params


def oracle_terms(bundle, stage, examples, of=None):
    """Sums and counts of one whole batch; its shapes are those for the examples ``of``."""
    batch = collate(examples, plan_shapes(of or examples, bundle.tokenizer), bundle.tokenizer)
    with jax.set_mesh(bundle.mesh):
        params = split(bundle.params, STAGES[stage].trains)
        return jax.device_get(eval_step(bundle.model, stage)(*params, put_batch(batch, bundle.mesh)))


@functools.cache
def eval_step(model, stage):
    return make_eval_step(model, STAGES[stage], OBJECTIVE)


def without_memory(example):
    """The prompt with its memories cut out."""
    kept = example.memory_index < 0
    fields = ("prompt_ids", "memory_index", "labels")
    return dataclasses.replace(example, **{name: getattr(example, name)[kept] for name in fields})


@pytest.mark.parametrize("stage", ["scp", "instruct", "end_to_end", "retrieval"])
def test_losses_are_those_of_a_whole_batch(directory, mesh, stage):
    values, _, _ = measure(directory, stage, mesh)
    bundle, (examples, _) = make_bundle(directory, mesh), make_examples(directory, stage)
    sums, counts = oracle_terms(bundle, stage, examples)
    for name, total in sums.items():
        assert values[name] == pytest.approx(total / counts[name], rel=1e-5), name
    weights = STAGES[stage].weights(OBJECTIVE)
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in weights.items()))
    names = {"loss", *sums}
    if stage != "retrieval":
        names |= {"ce_no_memory", "ce_other_memory"}
        for name, changed in (("no_memory", [without_memory(e) for e in examples]), ("other_memory", None)):
            sums, counts = oracle_terms(bundle, stage, changed or other_documents(examples, COUNT), examples)
            assert values[f"ce_{name}"] == pytest.approx(sums["ce"] / counts["ce"], rel=1e-5)
            assert abs(values[f"ce_{name}"] - values["ce"]) > 1e-3
    if stage in ("instruct", "end_to_end"):
        cases = ("", "_no_memory", "_other_memory")
        names |= {f"{name}{case}" for name in ("exact_match", "f1") for case in cases}
    if stage in ("end_to_end", "retrieval"):
        names |= {"recall@1", "recall@3"}  # of four candidates
    assert set(values) == names


@pytest.mark.parametrize("stage", ["instruct", "end_to_end"])
def test_answers_and_ranking_are_those_of_the_api(directory, mesh, stage):
    expected = api_answers(directory, stage)
    values, evaluation, _ = measure(directory, stage, mesh)
    assert list(evaluation.answers) == expected and len(set(expected)) > 1
    assert values["exact_match"] == pytest.approx(3 / 7) and 3 / 7 <= values["f1"] < 1
    for control in ("no_memory", "other_memory"):
        assert values[f"exact_match_{control}"] < values["exact_match"]
        assert values[f"f1_{control}"] < values["f1"]


def test_ranking_is_that_of_the_api(directory, mesh):
    _, records = make_examples(directory, "end_to_end")
    clara = Clara(make_bundle(directory, mesh))
    memories = [clara.compress(record.documents) for record in records]
    order = clara.rank([record.questions[0] for record in records], memories, k=CANDIDATES).indices
    places = [list(row).index(record.positives[0]) for row, record in zip(order, records, strict=True)]
    for stage in ("end_to_end", "retrieval"):
        values, _, _ = measure(directory, stage, mesh)
        assert values["recall@1"] == pytest.approx(np.mean([place < 1 for place in places]))
        assert values["recall@3"] == pytest.approx(np.mean([place < 3 for place in places]))
        assert 0 < values["recall@1"] < 1


def test_answers_without_memory_are_those_of_a_prompt_without_memories(directory, mesh):
    bundle, (examples, records) = make_bundle(directory, mesh), make_examples(directory, "instruct")
    records = [
        dataclasses.replace(r, gold_answers=(text,)) for r, text in zip(records, bare(bundle, records), strict=True)
    ]
    parts = (bundle.model, STAGES["instruct"], OBJECTIVE, bundle.tokenizer, mesh, examples, records)
    evaluation = Evaluation(*parts, encoding("instruct"), 4, loss_batches=0, max_new_tokens=6, end_ids=bundle.end_ids)
    with jax.set_mesh(mesh):
        values = evaluation(*split(bundle.params, STAGES["instruct"].trains))
    assert values["exact_match_no_memory"] == values["f1_no_memory"] == 1
    assert values["exact_match"] < 1 and values["exact_match_other_memory"] < 1 and "loss" not in values


def bare(bundle, records):
    """Answers to prompts whose memory tokens are cut out."""
    return answers_to(
        bundle, [prompts.question(r.questions[0], min(OBJECTIVE.top_k, len(r.documents))) for r in records]
    )


def answers_to(bundle, questions):
    """Answers to prompts whose memory tokens, where they have any, are cut out."""
    encoded = bundle.tokenizer.encode_prompts(questions)
    kept = [[i for i, m in zip(p.ids, p.memory_index, strict=True) if m < 0] for p in encoded]
    width = max(map(len, kept))
    ids = np.array([[0] * (width - len(row)) + row for row in kept], np.int32)
    mask = np.arange(width) >= width - np.array([[len(row)] for row in kept])
    memories = np.zeros((len(ids), 1, CLARA.memory_tokens, bundle.model.config.embed_dim), np.float32)
    with jax.set_mesh(bundle.mesh):
        arrays = put_batch((ids, mask, np.full_like(ids, -1), memories), bundle.mesh)
        out = generate(bundle.model, bundle.params, *arrays, np.zeros(len(ids), np.uint32), Sampling(6), bundle.end_ids)
    return [bundle.tokenizer.decode(row[:n].tolist()) for row, n in zip(*jax.device_get(out[:2]), strict=True)]


def test_same_values_on_another_mesh_and_however_batches_are_cut(directory, mesh, mesh222):
    expected, evaluation, _ = measure(directory, "end_to_end", mesh)
    values, again, _ = measure(directory, "end_to_end", mesh222, batch_size=8)
    assert list(values) == list(expected) and again.answers == evaluation.answers
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name


def test_gradients_of_both_paths(directory, mesh, mesh222):
    """Means over the questions, measured on one device in one batch and on eight in two."""
    bundle, (examples, records) = make_bundle(directory, mesh222), make_examples(directory, "end_to_end")
    parts = (bundle.model, STAGES["end_to_end"], OBJECTIVE, bundle.tokenizer, mesh222, examples, records)
    options = dict(end_ids=bundle.end_ids, answers=0, controls=False)
    evaluation = Evaluation(*parts, encoding("end_to_end"), 4, gradients=True, **options)
    with jax.set_mesh(mesh222):
        values = evaluation(*split(bundle.params, STAGES["end_to_end"].trains))
    assert evaluation.compilations == 3  # loss, gradients, scores
    bundle = make_bundle(directory, mesh)
    batch = collate(examples, plan_shapes(examples, bundle.tokenizer), bundle.tokenizer)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda params, batch: score_gradients(bundle.model, params, batch, OBJECTIVE))
        first, second = jax.device_get(step(bundle.params, put_batch(batch, mesh)))
    one, other = (np.linalg.norm(path, axis=1) for path in (first, second))
    assert values["gradient_probability"] == pytest.approx(one.mean(), rel=1e-3) and one.min() > 0
    assert values["gradient_representation"] == pytest.approx(other.mean(), rel=1e-3)
    expected = np.mean((first * second).sum(axis=1) / (one * other))
    assert values["gradient_cosine"] == pytest.approx(expected, rel=1e-3)


def test_limits(directory, mesh):
    values, evaluation, _ = measure(directory, "instruct", mesh, 2, loss_batches=1, answers=5, controls=False)
    assert list(evaluation.answers) == api_answers(directory, "instruct")[:5]
    assert values["exact_match"] == pytest.approx(2 / 5) and not any("memory" in name for name in values)
    bundle, (examples, _) = make_bundle(directory, mesh), make_examples(directory, "instruct")
    sums, counts = oracle_terms(bundle, "instruct", examples[:2])
    assert values["ce"] == pytest.approx(sums["ce"] / counts["ce"], rel=1e-5)


def test_compiles_once_and_stops_when_told(directory, mesh):
    first, evaluation, (trained, frozen) = measure(directory, "end_to_end", mesh)
    with jax.set_mesh(mesh):
        asked, compiled, answers = [], evaluation.compilations, evaluation.answers
        assert compiled == 3  # loss, selection, generation
        for limit in (0, 5, 15):
            asked.clear()
            assert evaluation(trained, frozen, lambda limit=limit: asked.append(0) or len(asked) > limit) is None
            assert len(asked) == limit + 1
        asked.clear()
        done = []  # the device calls before the end of each batch
        assert (
            evaluation(trained, frozen, lambda: bool(asked.append(0)), measured=lambda: done.append(len(asked)))
            == first
        )
        # Two batches: three losses, two selections and three times answers each.
        assert done == [8, 16] and evaluation.batches == 2 and evaluation.answers == answers
        moved = jax.jit(lambda leaves: jax.tree.map(lambda x: 1.5 * x, leaves))(trained)
        assert evaluation(moved, frozen)["loss"] != first["loss"]
        evaluation.answers = answers  # the evaluation is shared by the tests
        assert evaluation.compilations == compiled


def test_other_documents():
    def example(*documents, positives=None):
        arrays = tuple(np.array([number, 7], np.int32) for number in documents)
        none = np.zeros(0, np.int32)
        return Example(0, "", arrays, None, np.array([documents[0]], np.int32), none, none, positives)

    examples = [example(1, 2, 3, positives=(0,)), example(3, 4), example(5), example(6, 8, 9, 10)]
    others = other_documents(examples, 4)
    found = [[int(ids[0]) for ids in other.documents] for other in others]
    assert found == [[5, 5, 5], [6, 8], [1], [3, 4, 3, 4]]
    assert [other.positives for other in others] == [(), None, None, None]
    assert [other.prompt_ids for other in others] == [one.prompt_ids for one in examples]
    assert len(other_documents(examples, 2)) == 2
    assert other_documents([*examples, example(1, 3, 5, 6)], 4) is not None
    assert other_documents([*examples, example(1, 3, 5, 6)], 5) is None


def test_a_control_without_another_document_is_left_out(directory, mesh):
    bundle, (examples, records) = make_bundle(directory, mesh), make_examples(directory, "instruct")
    same = [dataclasses.replace(example, documents=examples[1].documents) for example in examples]
    parts = (bundle.model, STAGES["instruct"], OBJECTIVE, bundle.tokenizer, mesh, same, records)
    evaluation = Evaluation(*parts, encoding("instruct"), 4, answers=0, end_ids=bundle.end_ids)
    with jax.set_mesh(mesh):
        values = evaluation(*split(bundle.params, STAGES["instruct"].trains))
    assert "ce_no_memory" in values and "ce_other_memory" not in values


def test_nothing_held_out(directory, mesh):
    bundle = make_bundle(directory, mesh)
    parts = (bundle.model, STAGES["end_to_end"], OBJECTIVE, bundle.tokenizer, mesh, [], [])
    assert Evaluation(*parts, encoding("end_to_end"), 4, end_ids=bundle.end_ids)({}, {}) == {}


@pytest.mark.parametrize("stage", [pytest.param("scp", marks=pytest.mark.slow), "end_to_end"])
def test_documents_as_text(directory, mesh, mesh222, stage):
    """The loss of the whole batch, answers to the prompts of texts, and no controls; on one device and on eight."""
    _, records = make_examples(directory, stage)
    text_encoding = encoding(stage, "text")
    results, answers = [], []
    for where in (mesh, mesh222):
        bundle = quieter(make_bundle(directory, where))
        examples = encode_records(records, bundle.tokenizer, text_encoding)
        parts = (bundle.model, as_text(STAGES[stage]), OBJECTIVE, bundle.tokenizer, where, examples, records)
        evaluation = Evaluation(*parts, text_encoding, 4, max_new_tokens=6, end_ids=bundle.end_ids)
        with jax.set_mesh(where):
            results.append(evaluation(*split(bundle.params, ("lora/generator",))))
        answers.append(evaluation.answers)
    values, others = results
    assert values == pytest.approx(others, rel=1e-5) and answers[0] == answers[1]
    if stage == "end_to_end":
        # Two of four documents, the positive one among them; a prompt without memories is answered as it stands.
        kept = [[d for i, d in enumerate(r.documents) if i in chosen(r)] for r in records]
        questions = [prompts.question(r.questions[0], texts) for r, texts in zip(records, kept, strict=True)]
        expected = answers_to(quieter(make_bundle(directory, mesh)), questions)
        assert list(answers[0]) == expected and len(set(expected)) > 1
    batch = collate(examples, plan_shapes(examples, bundle.tokenizer), bundle.tokenizer, 8)
    with jax.set_mesh(bundle.mesh):
        step = make_eval_step(bundle.model, as_text(STAGES[stage]), OBJECTIVE)
        sums, counts = step(*split(bundle.params, ("lora/generator",)), put_batch(batch, bundle.mesh))
    assert values["loss"] == values["ce"] == pytest.approx(float(sums["ce"] / counts["ce"]), rel=1e-5)
    assert set(values) == {"loss", "ce", "accuracy"} | ({"exact_match", "f1"} if stage == "end_to_end" else set())


def quieter(bundle):
    """Adapters that leave more of the base: else all prompts of texts are answered alike."""
    lora = jax.tree.map(lambda x: x / 3, bundle.params["lora"])
    return dataclasses.replace(bundle, params={**bundle.params, "lora": lora})


def chosen(record):
    (positive,) = record.positives
    return {positive, 0 if positive else 1}
