"""What each condition gives the generator, and what is noted of what comes out."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.data.importers.retrievers import open_retriever
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.evaluation.runner import SystemSpec
from clara_jax.evaluation.system_specs import warn_of_precisions
from clara_jax.evaluation.systems import (
    MemoryModel,
    Ranker,
    Settings,
    TextModel,
    random_scores,
    retriever_scores,
    without_adapter,
)
from clara_jax.inference.requests import Result
from clara_jax.method.clara import ClaraConfig
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import CONDITIONS, draws
from clara_jax.model.sharding import make_mesh
from tests import tiny

K = 2
SETTINGS = Settings(K, 3)


def case(i, count):
    documents = tuple(tiny.document(100 * i + j) for j in range(count))
    return Case(f"c{i}", "question", f"Where was number {100 * i + 1} born?", documents, (tiny.PLACES[0],), (1,))


RANKED = Suite("ranked", True, tuple(case(i, 4 + i) for i in range(3)))
READ = Suite("read", False, tuple(case(i, 2) for i in range(3)))
TOLD = Suite("told", False, tuple(Case(f"t{i}", "paraphrase", "", (tiny.document(i),), ()) for i in range(2)))


@pytest.fixture(scope="module")
def clara(tmp_path_factory):
    base = tiny.write_base(tmp_path_factory.mktemp("base"))
    mesh = make_mesh(devices=jax.devices()[:1])
    bundle = opening.from_base(str(base), ClaraConfig(doc_max_length=32, compress_rate=8), mesh, "float32")
    rng = np.random.default_rng(0)
    # Fresh adapters change nothing; these make reader and compressor differ, and the generator from the base.
    lora = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), bundle.params["lora"])
    bundle = dataclasses.replace(
        bundle, params={**bundle.params, "lora": lora}, trained=("lora/query_reasoner", "lora/generator")
    )
    return Clara(bundle.with_limits(1024, 0.0), batch_size=4)


@pytest.fixture(scope="module")
def model(clara):
    def read(documents):
        return clara._encode("compressor", [list(map(int, ids)) for ids in documents])

    return MemoryModel(clara, read, SETTINGS)


@pytest.fixture(scope="module")
def text(clara):
    order = Ranker(retriever_scores(lambda texts: open_retriever("bm25", texts))).order
    return TextModel(clara, order, SETTINGS)


def given(system, condition, suite, number=0):
    (inputs,) = system.given(CONDITIONS[condition], suite, [suite.cases[number]])
    return inputs


def user_text(clara, inputs):
    return clara.bundle.tokenizer.decode(inputs.request.ids, special=True)


def test_the_model_reads_what_it_ranks_first(clara, model):
    for number, asked in enumerate(RANKED.cases):
        inputs, memories = given(model, "clara", RANKED, number), clara.compress(asked.documents)
        ranking = clara.rank([asked.question], memories, k=9)
        assert inputs.order == tuple(ranking.indices[0].tolist()) and inputs.read == inputs.order[:K]
        np.testing.assert_allclose(inputs.scores, ranking.scores[0], rtol=1e-5)
        np.testing.assert_allclose(inputs.request.memories, memories.array[list(inputs.read)], rtol=1e-4, atol=1e-5)
        assert inputs.texts == [asked.documents[i] for i in inputs.read]
        assert inputs.document_tokens == K * clara.bundle.model.clara.memory_tokens


def test_what_is_not_ranked_is_read_in_order(model):
    inputs = given(model, "clara", READ)
    assert inputs.read == (0, 1) and inputs.order is None and inputs.scores is None


def test_without_memory_the_prompt_is_the_same_but_for_the_memories(clara, model):
    real, control = given(model, "clara", RANKED).request, given(model, "no_memory", RANKED)
    memory = set(clara.bundle.tokenizer.memory_ids)
    assert list(control.request.ids) == [token for token in real.ids if token not in memory]
    assert set(control.request.memory_index) == {-1} and len(control.request.memories) == 0
    assert (control.read, control.texts, control.document_tokens, control.order) == ((), (), 0, None)


def test_another_cases_memories_stand_in_the_same_prompt(clara, model):
    real, control = given(model, "clara", READ, 2), given(model, "other_memory", READ, 2)
    assert control.request.ids == real.request.ids and control.read == () and control.order is None
    expected = clara.compress(READ.cases[0].documents).array
    np.testing.assert_allclose(control.request.memories, expected, rtol=1e-4, atol=1e-5)
    # With more documents than the other case has, they come again, and are ranked by this question.
    assert set(given(model, "other_memory", RANKED, 2).texts) <= set(RANKED.cases[0].documents)


def test_shuffled_memories_are_the_same_vectors(model):
    real, shuffled = (given(model, name, READ).request.memories for name in ("clara", "shuffled_memory"))
    assert not np.allclose(real, shuffled)
    rows = [np.array(sorted(x.reshape(-1, x.shape[-1]).tolist())) for x in (real, shuffled)]
    np.testing.assert_array_equal(*rows)


def test_memories_shuffled_within_stay_with_their_document(model):
    real, shuffled = (given(model, name, READ).request.memories for name in ("clara", "shuffled_within"))
    assert not np.allclose(real, shuffled)
    for before, after in zip(real, shuffled, strict=True):
        np.testing.assert_array_equal(sorted(before.tolist()), sorted(after.tolist()))
        assert not np.allclose(before, after)


def test_windows_are_written_out_from_memories(clara, model):
    tokenizer, text = clara.bundle.tokenizer, tiny.document(3)
    long = " ".join(tiny.document(i) for i in range(4))
    suite = Suite(
        "w", False, tuple(Case(f"{i}", "autoencode", "", (document,), ()) for i, document in enumerate((text, long)))
    )
    whole, cut = (given(model, "clara", suite, number) for number in (0, 1))
    assert user_text(clara, whole) == f"{tokenizer.memory_text}<AE>" and whole.read == (0,)
    assert tokenizer.decode(whole.window) == text and whole.request.sampling.max_new_tokens == len(whole.window) + 1
    assert tokenizer.decode(cut.window) == tokenizer.cut_texts([long])[0] != long
    assert len(given(model, "no_memory", suite).request.ids) == 2  # <SEP> and <AE>
    for condition in ("clara", "no_memory", "other_memory", "shuffled_memory"):
        (prediction,) = model.predict(CONDITIONS[condition], suite, suite.cases[:1])
        assert (
            prediction.window_tokens == len(whole.window) and 0 <= prediction.right_tokens <= prediction.window_tokens
        )
        assert prediction.answer_tokens <= len(whole.window) + 1


def test_what_is_right_is_counted_place_by_place(model):
    suite = Suite("w", False, (Case("0", "autoencode", "", (tiny.document(3),), ()),))
    inputs = given(model, "clara", suite)
    for tokens, right in (
        (inputs.window, len(inputs.window)),
        ((*inputs.window, 5), len(inputs.window)),
        (inputs.window[:2], 2),
        ((0, *inputs.window), sum(a == b for a, b in zip((0, *inputs.window), inputs.window, strict=False))),
        ((), 0),
    ):
        result = Result(tuple(tokens), 0.0, "stop", {})
        assert model._prediction(suite.cases[0], inputs, result).right_tokens == right


def test_what_documents_take_where_they_are_kept_and_in_the_prompt(clara, model, text):
    config = clara.bundle.model
    width, vectors = config.config.embed_dim, config.clara.memory_tokens
    (prediction,) = model.predict(CONDITIONS["clara"], READ, READ.cases[:1])
    tokens = [len(ids) for ids in model.text_ids(READ.cases[0].documents)]
    assert prediction.rates == tuple(round(count / vectors, 4) for count in tokens)
    assert prediction.document_bytes == 2 * vectors * width * 4  # float32
    (whole,) = text.predict(CONDITIONS["text_topk"], READ, READ.cases[:1])
    assert whole.rates == (1.0, 1.0) and whole.document_bytes == sum(map(len, READ.cases[0].documents))
    (short,) = text.predict(CONDITIONS["text_truncated"], READ, READ.cases[:1])
    assert short.rates == prediction.rates and short.document_bytes < whole.document_bytes
    (none,) = model.predict(CONDITIONS["no_memory"], READ, READ.cases[:1])
    assert (none.rates, none.document_bytes) == ((), 0)


def test_the_right_memories_alone_and_random_ones(clara, model):
    documents = RANKED.cases[2].documents
    assert given(model, "gold_memory", RANKED, 2).texts == [documents[1]]
    drawn = draws(RANKED.cases[2], SETTINGS.seed).permutation(len(documents))[:K]
    assert given(model, "random_selection", RANKED, 2).read == tuple(drawn)


def test_a_document_is_told_again_from_its_memory_or_text(clara, model, text):
    assert given(model, "clara", TOLD).read == (0,)
    assert tiny.document(0) in user_text(clara, given(text, "text_oracle", TOLD))
    (prediction,) = model.predict(CONDITIONS["clara"], TOLD, TOLD.cases[:1])
    assert prediction.answer_tokens <= 4 * SETTINGS.max_new_tokens


def test_texts_stand_in_the_prompt(clara, text):
    asked = RANKED.cases[0]
    inputs = given(text, "closed_book", RANKED)
    assert inputs.read == () and not any(document in user_text(clara, inputs) for document in asked.documents)
    first, best, right = (given(text, name, RANKED) for name in ("text_top1", "text_topk", "text_oracle"))
    assert len(best.read) == K and first.read == best.read[:1] and right.read == (1,)
    for inputs in (first, best, right):
        shown = [i for i, document in enumerate(asked.documents) if document in user_text(clara, inputs)]
        assert sorted(inputs.read) == shown
        assert inputs.document_tokens == sum(map(len, text.text_ids(inputs.texts)))
    assert asked.documents[1] in first.texts  # only there stands the number that is asked for
    assert given(text, "text_topk", READ).read == (0, 1)


def test_truncated_and_pruned_texts_keep_a_part(clara, text):
    tokens = [len(ids) for ids in text.text_ids(given(text, "text_topk", RANKED).texts)]
    short, pruned = given(text, "text_truncated", RANKED), given(text, "text_pruned", RANKED)
    assert short.document_tokens == K * clara.bundle.model.clara.memory_tokens
    assert pruned.document_tokens == sum(-(-count // 4) for count in tokens)
    beginning = clara.bundle.tokenizer.decode(text.text_ids(short.texts)[0][: clara.bundle.model.clara.memory_tokens])
    assert beginning in user_text(clara, short)
    for inputs in (short, pruned):
        assert not any(document in user_text(clara, inputs) for document in inputs.texts)


def test_a_text_is_shown_as_far_as_the_compressor_reads_it(clara, text):
    long = " ".join(tiny.document(i) for i in range(4))
    suite = Suite("long", False, (Case("l", "question", "Where?", (long,), ("A",)),))
    inputs = given(text, "text_oracle", suite)
    seen = clara.bundle.tokenizer.encode_document(long)[2:]  # without <ENC> and the beginning token
    assert inputs.document_tokens == len(seen) and long not in user_text(clara, inputs)
    assert clara.bundle.tokenizer.decode(seen) in user_text(clara, inputs)


def test_predictions_hold_what_was_given_and_answered(clara, model):
    predictions = model.predict(CONDITIONS["clara"], RANKED, RANKED.cases)
    assert [prediction.case for prediction in predictions] == ["c0", "c1", "c2"]
    for prediction, asked in zip(predictions, RANKED.cases, strict=True):
        answer = clara.answer([asked.question], [list(asked.documents)], k=K, max_new_tokens=3)[0]
        assert prediction.answer == answer.text and prediction.answer_tokens == len(answer.tokens)
        assert prediction.ended in ("stop", "length") and prediction.milliseconds is None
        assert prediction.text_tokens == sum(map(len, model.text_ids([asked.documents[i] for i in prediction.read])))
        assert prediction.prompt_tokens > prediction.document_tokens > 0


def test_times_are_of_cases_asked_alone(model):
    (asked,) = model.predict(CONDITIONS["clara"], RANKED, RANKED.cases[:1])
    (timed,) = model.predict(CONDITIONS["clara"], RANKED, RANKED.cases[:1], timed=True)
    assert dataclasses.replace(timed, milliseconds=None, scores=None) == dataclasses.replace(asked, scores=None)
    assert 0 < timed.milliseconds["first"] <= timed.milliseconds["total"]


def test_without_its_adapter_the_generator_is_the_base(clara, text):
    plain = TextModel(Clara(without_adapter(clara.bundle), 4), text._order, SETTINGS)
    suite = Suite("one", False, READ.cases[:1])
    (adapted,), (base,) = (part.predict(CONDITIONS["closed_book"], suite, suite.cases) for part in (text, plain))
    bare = dataclasses.replace(clara.bundle, params={**clara.bundle.params, "lora": _zeros(clara)})
    other = TextModel(Clara(bare, 4), text._order, SETTINGS)
    (expected,) = other.predict(CONDITIONS["closed_book"], suite, suite.cases)
    assert base == expected and base.answer != adapted.answer


def _zeros(clara):
    return jax.tree.map(np.zeros_like, clara.bundle.params["lora"])


def test_rankers(text):
    bm25 = Ranker(retriever_scores(lambda texts: open_retriever("bm25", texts)))
    for prediction, asked in zip(bm25.predict(CONDITIONS["rank"], RANKED, RANKED.cases), RANKED.cases, strict=True):
        assert prediction.order[0] == 1 and prediction.answer is None  # only there stands the number that is asked for
        assert sorted(prediction.order) == list(range(len(asked.documents)))
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
    first, again = (Ranker(random_scores(0)).order(RANKED) for _ in range(2))
    assert first == again and first != Ranker(random_scores(1)).order(RANKED)


def test_a_prompt_that_is_too_long_is_named(clara, text):
    short = TextModel(Clara(clara.bundle.with_limits(40, 0.0), 4), text._order, SETTINGS)
    with pytest.raises(ClaraError, match="ranked, case c0: .* above max_length 40"):
        short.predict(CONDITIONS["text_topk"], RANKED, RANKED.cases)


def test_settings_are_checked():
    with pytest.raises(ClaraError, match="k is 0"):
        Settings(k=0)


def test_models_of_different_precisions_are_named():
    def opened(name, precision, condition="clara"):
        return SystemSpec(name, {"precision": precision}, (CONDITIONS[condition],), lambda: pytest.fail("opened"))

    with pytest.warns(ClaraWarning, match=r"\(mixed: packaged, copy; float32: trained\); --precision opens all in one"):
        warn_of_precisions([opened("packaged", "mixed"), opened("trained", "float32"), opened("copy", "mixed")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_precisions([opened("packaged", "mixed"), opened("text", "float32", "text_oracle")])
