"""The Python face on a tiny model: ragged inputs, long documents, sources, controls, and mistakes in words."""

import dataclasses
import json
import pickle
import warnings

import numpy as np
import pytest

from clara_jax import Clara, ClaraError, Memories
from clara_jax.checkpoints import opening
from clara_jax.errors import ClaraWarning
from clara_jax.method.clara import ClaraConfig
from tests.tiny import document, with_adapters, write_base

DOCUMENTS = [document(i) for i in range(6)]
QUESTIONS = ["Where was Ada number 0 born?", "Where does Mika number 2 work?", "Who is a painter?"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, mesh):
    base = write_base(tmp_path_factory.mktemp("base"))
    clara = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, max_length=192)
    return with_adapters(opening.from_base(str(base), clara, mesh, "float32"))


@pytest.fixture(scope="module")
def clara(bundle):
    return Clara(bundle, batch_size=4)


def test_a_memory_does_not_depend_on_its_batch(clara):
    together = clara.compress(DOCUMENTS)
    alone = clara.compress(DOCUMENTS[3:4], ids=["x"])
    assert together.array.shape == (6, 4, 64) and together.ids == tuple("012345") and alone.ids == ("x",)
    np.testing.assert_allclose(together.array[3], alone.array[0], atol=1e-5)


def test_ranking_is_the_cosine_of_flattened_memories(clara):
    memories = clara.compress(DOCUMENTS)
    ranking = clara.rank(QUESTIONS, memories, k=4)
    queries = clara._encode("query_reasoner", clara.bundle.tokenizer.encode_documents(QUESTIONS)).reshape(3, -1)
    flat = memories.array.reshape(6, -1)
    cosine = queries @ flat.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(flat, axis=1)
    np.testing.assert_array_equal(ranking.indices, np.argsort(-cosine, axis=1)[:, :4])
    np.testing.assert_allclose(ranking.scores, -np.sort(-cosine, axis=1)[:, :4], atol=1e-5)


def test_ragged_documents_and_fewer_than_k(clara):
    documents = [DOCUMENTS[:1], DOCUMENTS[:4], DOCUMENTS[2:5]]
    answers = clara.answer(QUESTIONS, documents, k=3, max_new_tokens=6)
    assert [len(answer.sources) for answer in answers] == [1, 3, 3]
    for answer, texts in zip(answers, documents, strict=True):
        for source in answer.sources:
            assert texts[int(source.id)] == source.text and -1 <= source.score <= 1
        assert answer.log_probability < 0 and len(answer.tokens) <= 6
    # A question answered alone gets the same answer from the same sources.
    (alone,) = clara.answer(QUESTIONS[1:2], documents[1:2], k=3, max_new_tokens=6)
    assert alone.tokens == answers[1].tokens
    assert [source.id for source in alone.sources] == [source.id for source in answers[1].sources]


def test_as_many_are_read_as_the_model_learned_to(clara):
    learned = Clara(dataclasses.replace(clara.bundle, history=({"stage": "instruct", "top_k": 2},)), batch_size=4)
    for model, count in ((learned, 2), (clara, 5)):
        assert model.usual_k == count
        (answer,) = model.answer(QUESTIONS[:1], [DOCUMENTS], max_new_tokens=2)
        assert len(answer.sources) == count


def test_memories_instead_of_documents(clara):
    memories = clara.compress(DOCUMENTS)
    from_memories = clara.answer(QUESTIONS, memories=memories, k=2, max_new_tokens=5)
    from_documents = clara.answer(QUESTIONS, [DOCUMENTS] * 3, k=2, max_new_tokens=5)
    assert [answer.tokens for answer in from_memories] == [answer.tokens for answer in from_documents]
    assert from_memories[0].sources[0].text in DOCUMENTS


def test_the_answer_depends_on_the_memory(clara):
    one, other = (clara.answer(QUESTIONS[:1], [[text]], max_new_tokens=8)[0] for text in (DOCUMENTS[0], DOCUMENTS[3]))
    assert one.log_probability != other.log_probability


def test_long_documents_are_chunked_or_cut_openly(clara):
    long = " ".join(DOCUMENTS)
    with pytest.warns(UserWarning, match="lose their end"):
        cut = clara.compress([long], long="cut")
    chunked = clara.compress([long, DOCUMENTS[0]], ids=["long", "short"])
    assert len(cut) == 1
    assert chunked.ids[:2] == ("long#0", "long#1") and chunked.ids[-1] == "short" and len(chunked) > 3
    assert " ".join(chunked.texts[:-1]) == long
    (answer,) = clara.answer(QUESTIONS[:1], [[long]], k=2, max_new_tokens=2)
    assert all(source.id.startswith("0#") and source.text in long for source in answer.sources)


def test_paraphrase(clara):
    texts = clara.paraphrase(DOCUMENTS[:2], "Say {docs} again", max_new_tokens=5)
    assert len(texts) == 2
    with pytest.raises(ClaraError, match="docs"):
        clara.paraphrase(DOCUMENTS[:1], "Say it again")


def test_sampling_is_repeatable_and_differs_by_seed(clara):
    def draw(seed):
        return clara.answer(QUESTIONS[:1], [DOCUMENTS], max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed)[
            0
        ].tokens

    assert draw(1) == draw(1) and len({draw(seed) for seed in range(4)}) > 1
    # A nucleus that holds the best token alone is greedy decoding.
    greedy, nucleus = (
        clara.answer(QUESTIONS[:1], [DOCUMENTS], max_new_tokens=8, temperature=t, top_p=p)[0].tokens
        for t, p in ((0, 1), (1, 1e-6))
    )
    assert greedy == nucleus


def test_one_row_answers_as_many(bundle, clara):
    """Its weights lie otherwise on a CPU (`clara_jax.inference.weights`)."""
    alone = Clara(bundle, rows=1)
    assert alone.engine.rows == 1 and clara.engine.rows == clara.batch_size
    one, many = (model.answer(QUESTIONS, [DOCUMENTS] * 3, k=2, max_new_tokens=6) for model in (alone, clara))
    assert [answer.tokens for answer in one] == [answer.tokens for answer in many]


def test_eight_devices_answer_as_one(bundle, clara, mesh222, tmp_path):
    bundle.save(tmp_path / "checkpoint", "end_to_end")
    wide = Clara.load(tmp_path / "checkpoint", mesh=mesh222, batch_size=4)
    assert wide.fingerprint == clara.fingerprint
    np.testing.assert_allclose(wide.compress(DOCUMENTS).array, clara.compress(DOCUMENTS).array, atol=1e-5)
    one, other = (c.answer(QUESTIONS, [DOCUMENTS] * 3, k=2, max_new_tokens=6) for c in (clara, wide))
    assert [answer.tokens for answer in one] == [answer.tokens for answer in other]


def test_without_a_query_reasoner_the_compressor_reads_questions(bundle):
    early = Clara(dataclasses.replace(bundle, trained=("lora/compressor", "lora/generator")), batch_size=4)
    with pytest.warns(UserWarning, match="query reasoner"):
        ranking = early.rank(DOCUMENTS[2:3], early.compress(DOCUMENTS), k=1)
    assert ranking.indices[0, 0] == 2 and ranking.scores[0, 0] == pytest.approx(1, abs=1e-5)


def test_bfloat16_stays_close(bundle, clara, tmp_path):
    bundle.save(tmp_path / "checkpoint", "end_to_end")
    half = Clara.load(tmp_path / "checkpoint", precision="bfloat16", mesh=bundle.mesh, batch_size=4)
    exact, rough = (
        clara.compress(DOCUMENTS).array.reshape(6, -1),
        half.compress(DOCUMENTS).array.reshape(6, -1).astype(np.float32),
    )
    cosine = np.sum(exact * rough, 1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert np.all(cosine > 0.999)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda c: c.compress("one text"), "list of texts"),
        (lambda c: c.compress(["good", " "]), r"documents\[1\]"),
        (lambda c: c.compress(None), "documents: is of type NoneType"),
        (lambda c: c.compress({"id": "text"}), "documents: is of type dict"),
        (lambda c: c.compress(b"text"), "documents: is of type bytes"),
        (lambda c: c.rank(7, c.compress(["a"])), "questions: is of type int"),
        (lambda c: c.rank(["q"], None), "memories: give what compress returned"),
        (lambda c: c.answer(["q"], memories=["a"]), "memories: give what compress returned"),
        (lambda c: c.answer(["q"], {"q": ["a"]}), "documents: a list of texts for each"),
        (lambda c: c.answer(["q"], [["a"]], temperature="1"), "temperature: '1' is no number"),
        (lambda c: c.answer(["q"], [["a"]], top_p=None), "top_p: None is no number"),
        (lambda c: c.answer(["q"], [["a"]], seed="x"), "seed: 'x' is no whole number"),
        (lambda c: Clara.load(None), "None is no path"),
        (lambda c: Clara.load("a" * 5000), "no such directory"),
        (lambda c: c.compress(["a", "b"], ids=["x", "x"]), "unique"),
        (lambda c: c.compress(["a"], long="drop"), "chunk"),
        (lambda c: c.answer(["q"]), "either documents"),
        (lambda c: c.answer(["q"], [[]]), "no documents"),
        (lambda c: c.answer(["q", "r"], [["a"]]), "each of the 2 questions"),
        (lambda c: c.answer(["q"], [["a"]], k=0), "k: 0"),
        (lambda c: c.answer(["q"], [["a"]], max_new_tokens=0), "max_new_tokens"),
        (lambda c: c.answer(["q"], [["a"]], temperature=-1), "temperature"),
        (lambda c: c.answer(["q"], [["a"] * 40], k=None), "max_length"),
        (lambda c: c.rank(["q"], dataclasses.replace(c.compress(["a"]), fingerprint="other")), "another model"),
        (lambda c: Clara.load("/nowhere/at/all"), "no such directory"),
    ],
)
def test_mistakes_are_said_in_words(clara, call, words):
    with pytest.raises(ClaraError, match=words):
        call(clara)


def test_a_checkpoint_of_another_base_is_refused(bundle, tmp_path, mesh):
    bundle.save(tmp_path / "checkpoint", "scp")
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(ClaraError, match="hash"):
        Clara.load(tmp_path / "checkpoint", base=str(other), mesh=mesh)
    metadata = tmp_path / "checkpoint" / "clara.json"
    changed = json.loads(metadata.read_text())
    changed["clara"]["lora_rank"] = 8
    metadata.write_text(json.dumps(changed))
    with pytest.raises(ClaraError, match="clara.json"):
        Clara.load(tmp_path / "checkpoint", mesh=mesh)


def test_texts_may_come_from_a_generator(clara):
    expected = clara.compress(DOCUMENTS)
    found = clara.compress(text for text in DOCUMENTS)
    assert found.texts == expected.texts
    np.testing.assert_array_equal(found.array, expected.array)


class Hostile:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_hostile_released_checkpoint_is_refused_and_never_executed(tmp_path, mesh, monkeypatch):
    import zipfile

    monkeypatch.chdir(tmp_path)
    base = write_base(tmp_path / "base")
    config = {
        "model_type": "CLaRa",
        "doc_max_length": 32,
        "compr_rate": 8,
        "lora_r": 4,
        "decoder_model_name": str(base),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with zipfile.ZipFile(tmp_path / "adapters.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"encoder_adapter": Hostile()}))
        archive.writestr("archive/version", "3")
    with pytest.raises(ClaraError, match="adapters.pth"):
        Clara.load(tmp_path, mesh=mesh)
    assert not (tmp_path / "executed").exists()


def test_a_streamed_answer_is_the_unstreamed_one(clara):
    memories = clara.compress(DOCUMENTS)
    for options in ({}, {"temperature": 1.5, "seed": 3}):
        (whole,) = clara.answer(QUESTIONS[:1], memories=memories, k=2, max_new_tokens=20, **options)
        stream = clara.answer(QUESTIONS[:1], memories=memories, k=2, max_new_tokens=20, stream=True, **options)
        assert stream.sources == whole.sources and stream.answer is None
        assert "".join(stream) == whole.text and stream.answer.tokens == whole.tokens
    for options, said in (({"k": 0}, "k: 0"), ({"seed": "x"}, "seed")):
        with pytest.raises(ClaraError, match=said):  # before the first piece is asked for
            clara.answer(QUESTIONS[:1], memories=memories, stream=True, **options)
    with pytest.raises(ClaraError, match="stream: one answer can be streamed at a time, not 3"):
        clara.answer(QUESTIONS, memories=memories, stream=True)


def test_more_documents_than_were_trained_with_are_warned_of(clara):
    learned = Clara(dataclasses.replace(clara.bundle, history=({"stage": "instruct", "top_k": 2},)), batch_size=4)
    memories = learned.compress(DOCUMENTS)
    assert learned.rank(QUESTIONS, memories).indices.shape == (3, 2)
    with pytest.warns(ClaraWarning, match="k: 3 documents are read, and the model was trained to read 2"):
        learned.answer(QUESTIONS[:1], memories=memories, k=3, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, k in ((learned, "trained"), (learned, 1), (clara, 6)):  # what the last one learned is not known
            model.answer(QUESTIONS[:1], memories=memories, k=k, max_new_tokens=2)
    assert "instruct, k 2)" in repr(learned) and "untrained, k 5)" in repr(clara)


def test_a_saved_collection_answers_as_before(clara, tmp_path):
    memories = clara.compress(DOCUMENTS[:2], ids=["a", "b"])
    memories.save(tmp_path / "m")
    found = Memories.load(tmp_path / "m", clara.fingerprint)
    before, after = (clara.answer(QUESTIONS[:1], memories=one, max_new_tokens=4)[0] for one in (memories, found))
    assert before.sources == after.sources and before.tokens == after.tokens
    assert {source.document for source in after.sources} == {"a", "b"} and after.sources[0].tokens > 5
