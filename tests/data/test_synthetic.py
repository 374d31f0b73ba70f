"""The synthetic corpus: reproducible, answerable from the gold documents and from nothing else."""

import dataclasses
from collections import Counter, defaultdict

import pytest

from clara_jax.data import synthetic
from clara_jax.data.synthetic import asked, documents, record, records, write
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import STAGES, read_records
from tests.configurations import changed

SMALL = SyntheticConfig(world=dict(name_words=12, train_partners=8, eval_partners=4), records=dict(train=200, eval=60))
COMPLEX = changed(SMALL, world=dict(attributes=3, phrasings=3), records=dict(complex_share=0.5, paraphrase_share=0.5))
PINNED = (
    ("Which genre is Debrilic Fisetsong?",),
    ("chant",),
    (1,),
    "Debrilic Fisetsong is carried by velvet. This work is read as a chant.",
)


def name(document):
    """The entity a document is about: its first two words."""
    return " ".join(document.split()[:2])


def words(text):
    return set(text.replace(".", "").replace(",", "").replace("?", "").split())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=-1), "config.synthetic.seed is -1; it must be a whole number, zero or positive"),
        (dict(world=dict(name_words=3)), "world.name_words is 3; it must be from 4 to 400"),
        (dict(world=dict(name_words="9")), "world.name_words is '9'; it must be a whole number from 4 to 400"),
        (dict(world=dict(train_partners=1)), "train_partners is 1; it must be at least 2"),
        (
            dict(world=dict(train_partners=60)),
            "train_partners is 60; with eval_partners 8 it may not exceed name_words 64",
        ),
        (dict(records=dict(eval=0)), "records.eval is 0; it must be a whole number, at least 1"),
        (dict(world=dict(attributes=4)), "attributes is 4; it must be from 1 to 3"),
        (dict(world=dict(attribute_values=1)), "values is 1; it must be from 2 to 24"),
        (dict(world=dict(phrasings=0)), "phrasings is 0; it must be from 1 to 3"),
        (dict(records=dict(candidates=999)), "records.candidates is 999; it must be from 1 "),
        (
            dict(records=dict(complex_share=0.1, instruct_documents=1)),
            "records.instruct_documents is 1; it must be from 2 ",
        ),
        (dict(records=dict(hard_share=1.5)), "hard_share is 1.5; it must be a number in [0, 1]"),
        (
            dict(valeus=3),
            "valeus: there is no such field; did you mean config.synthetic.world.attribute_values?",
        ),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ClaraError, match="config.synthetic") as error:
        SyntheticConfig(**fields)
    assert message in str(error.value)


def test_old_names_of_fields_work_and_warn(capsys):
    old = SyntheticConfig(seed=3, name_words=12, train_partners=8, eval_partners=4, train_records=9)
    assert old == changed(SMALL, seed=3, records=dict(train=9, eval=512))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    message = "config.synthetic.train_records is now config.synthetic.records.train; the old name will go in the next"
    assert any(message in line for line in lines)


def test_unknown_names_and_indices():
    for arguments, message in (
        (("pretraining", "train", 0), "stage 'pretraining' is unknown"),
        (("scp", "test", 0), "split 'test' is unknown"),
        (("scp", "eval", 60), "synthetic:eval:60: there are 60 records"),
    ):
        with pytest.raises(ClaraError, match=message):
            record(SMALL, *arguments)
    with pytest.raises(ClaraError, match="split 'test' is unknown"):
        list(documents(SMALL, "test"))


def test_a_record_never_changes():
    """Runs that are resumed, and results that are compared, rest on this."""
    made = record(SyntheticConfig(), "end_to_end", "train", 17)
    assert made.where == made.qid == "synthetic:train:17"
    assert (made.questions, made.answers, made.positives) == PINNED[:3]
    assert made.documents[made.positives[0]] == PINNED[3]


@pytest.mark.parametrize("config", [SMALL, COMPLEX])
def test_records_depend_on_config_split_and_index_alone(config):
    for stage in STAGES:
        whole = records(config, stage, "eval")
        assert len(whole) == config.records.eval
        synthetic._world.cache_clear()
        assert [record(config, stage, "eval", i) for i in (59, 3, 0)] == [whole[i] for i in (59, 3, 0)]
        other_seed = records(dataclasses.replace(config, seed=1), stage, "eval")
        assert sum(a == b for a, b in zip(whole, other_seed, strict=True)) == 0
        assert len({(r.questions, r.documents, r.answers) for r in whole}) > 0.5 * len(whole)


def test_any_of_a_million_records_is_made_at_once():
    world = dict(name_words=400, train_partners=300, eval_partners=100)
    config = changed(SMALL, world=world, records=dict(train=10**6))
    assert config.world.entities("train") == 360_000
    assert record(config, "end_to_end", "train", 999_999).where == "synthetic:train:999999"


def test_evaluation_entities_are_unseen_but_their_words_are_not():
    by_split = {split: list(documents(COMPLEX, split)) for split in ("train", "eval")}
    names = {split: {document.id for document in by_split[split]} for split in by_split}
    for split in by_split:
        assert len(by_split[split]) == len(names[split]) == COMPLEX.world.entities(split)
        assert all(name(document.text) == document.id for document in by_split[split])
    assert not names["train"] & names["eval"]
    seen, unseen = (set().union(*(words(document.text) for document in by_split[split])) for split in by_split)
    assert unseen <= seen
    for stage in STAGES:  # records stay within their split
        used = {name(text) for r in records(COMPLEX, stage, "eval") for text in r.documents}
        assert used <= names["eval"]


@pytest.mark.parametrize("config", [SMALL, COMPLEX])
@pytest.mark.parametrize("stage", ["instruct", "end_to_end", "retrieval"])
def test_the_gold_documents_answer_and_no_other(config, stage):
    count = config.records.instruct_documents if stage == "instruct" else config.records.candidates
    for r in records(config, stage, "train"):
        (question,), (answer,) = r.questions, r.answers
        assert r.gold_answers == r.answers and len(r.documents) == count
        subjects = [name(text) for text in r.documents]
        assert len(set(subjects)) == count, "no entity has two documents"
        gold = [i for i, subject in enumerate(subjects) if subject in question]
        assert len(gold) == 1 and gold[0] in r.positives
        assert not words(answer) & words(question)
        if "the maker of" in question:
            assert len(r.positives) == 2
            (person,) = (i for i in r.positives if i != gold[0])
            assert subjects[person] in r.documents[gold[0]] and subjects[person] not in question
            assert answer in words(r.documents[person]) and answer not in words(r.documents[gold[0]])
        else:
            assert r.positives == tuple(gold)
            assert answer in r.documents[gold[0]]


def test_stages_ask_the_same_question_and_gold_documents_stand_anywhere():
    ranked = records(SMALL, "end_to_end", "train")
    assert [r.questions for r in ranked] == [r.questions for r in records(SMALL, "instruct", "train")]
    assert ranked == records(SMALL, "retrieval", "train")
    places = Counter(r.positives for r in ranked)
    assert set(places) == {(i,) for i in range(8)} and max(places.values()) < 2 * 200 / 8


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_complex_share(share):
    config = changed(SMALL, records=dict(complex_share=share))
    complex_ones = sum("the maker of" in r.questions[0] for r in records(config, "end_to_end", "train"))
    assert complex_ones == share * 200


def test_hard_candidates_share_a_word_or_the_fact():
    def alike(share):
        config = changed(SMALL, records=dict(hard_share=share))
        pairs = []
        for r in records(config, "end_to_end", "train"):
            gold = r.documents[r.positives[0]]
            gold_words = words(name(gold)) | {r.answers[0]}
            pairs += [bool(gold_words & words(text)) for text in r.documents if text != gold]
        return sum(pairs) / len(pairs)

    assert alike(0.0) < 0.2
    assert alike(1.0) > 0.95


def test_answers_cannot_be_guessed():
    """Over all questions the most frequent answer is right about once in ``attribute_values`` times, and so is
    the most frequent one to a name word."""
    config = SyntheticConfig(world=dict(attribute_values=4, attributes=1, phrasings=1), records=dict(train=4000))
    by_question, by_word = defaultdict(Counter), defaultdict(Counter)
    for r in records(config, "instruct", "train"):
        first, second = name(r.documents[r.positives[0]]).split()
        by_question[r.questions[0].split()[1]][r.answers[0]] += 1
        by_word[first][r.answers[0]] += 1
        by_word[second][r.answers[0]] += 1
    for counts in by_question.values():
        assert len(counts) == 4 and max(counts.values()) < 0.35 * counts.total()
    assert sum(max(counts.values()) for counts in by_word.values()) < 0.5 * sum(map(Counter.total, by_word.values()))


def test_scp_asks_for_every_fact_or_says_it_again():
    made = Counter()
    for r in records(COMPLEX, "scp", "train"):
        made[r.kind] += 1
        (text,) = r.documents
        if r.kind == "qa":
            assert len(r.questions) == len(r.answers) == 3 + ("song " in text)
            assert all(name(text) in question for question in r.questions)
            assert all(answer in text for answer in r.answers)
        else:
            (other,) = r.answers
            assert name(other) == name(text) and other != text
            # Values are all that the two have to have in common.
            facts = [answer for answer in synthetic._world(COMPLEX).facts(_entity(COMPLEX, name(text)))]
            assert all(fact in other and fact in text for fact in facts)
    assert 60 < made["paraphrase"] < 140 and made.total() == 200


def _entity(config, name):
    world = synthetic._world(config)
    numbers = range(config.world.entities("train"))
    return next(world.entity("train", n) for n in numbers if world.name(world.entity("train", n)) == name)


def test_files_hold_the_same_records(tmp_path):
    paths = write(COMPLEX, tmp_path / "corpus")
    assert [path.name for path in paths[:2]] == ["scp.train.jsonl", "scp.eval.jsonl"]
    for stage in STAGES:
        for split in ("train", "eval"):
            read = read_records(tmp_path / "corpus" / f"{stage}.{split}.jsonl", stage)
            assert [dataclasses.replace(r, where=r.qid) for r in read] == records(COMPLEX, stage, split)


@pytest.mark.parametrize("config", [SMALL, COMPLEX])
def test_everything_is_asked_about_a_document_once(config):
    rounds = list(asked(config, "eval"))
    kinds = [[(question.fact, question.places) for question in questions] for questions in rounds]
    assert all(kind == kinds[0] for kind in kinds)  # every round is balanced
    assert len(kinds[0]) == 3 * config.world.attributes + (config.records.complex_share > 0)
    texts = {document.id: document for document in documents(config, "eval")}
    assert len(rounds) * 3 == len(texts) and {one.document.id for questions in rounds for one in questions} == set(
        texts
    )
    assert list(texts)[:3] != list(dict.fromkeys(one.document.id for one in rounds[0]))  # in another order
    for one in (one for questions in rounds for one in questions):
        assert one.document == texts[one.document.id] and one.document.id in one.question
        assert words(one.answer) <= words(one.document.text) and not words(one.answer) & words(one.question)


def test_the_place_of_a_fact_is_where_the_document_states_it():
    places = Counter()
    for questions in asked(COMPLEX, "eval"):
        for document in {one.document for one in questions}:
            of_document = [one for one in questions if one.document == document]
            body = document.text.removeprefix(document.id)
            of_document.sort(key=lambda one: body.index(f" {one.answer}"))
            assert [one.place for one in of_document] == list(range(of_document[0].places))
            places.update((one.fact, one.place) for one in of_document)
    # Its place is no property of what is asked for.
    assert all(places["town", place] and places["genre", place] for place in range(3)) and places["maker", 3]
