"""Every importer on files in the published format, and on files that depart from it."""

import json

import pytest

from clara_jax.data.importers import beir, clara_multi_stage, dpr, hotpotqa, musique, natural_questions, squad, two_wiki
from clara_jax.data.importers.examples import SAME_AGAIN, UNANSWERABLE, ImportedDocument, Log
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import parse_record
from tests.data.importers import published
from tests.data.importers.published import write_json, write_lines

MISSING = object()


def changed(value, path, new):
    """A copy in which one value, at a path of keys and indices, is another or missing."""
    value = json.loads(json.dumps(value))  # not copy.deepcopy: what is one object twice must become two
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def refused(generator, path, line, *parts):
    """The generator ends with a message that begins with file and line and holds the parts."""
    with pytest.raises(ClaraError) as caught:
        list(generator)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}" if line else f"{path}: "), message
    for part in parts:
        assert part in message, message


def collected(read, *arguments):
    """The examples that are left when departures are collected, these, and the log."""
    rejected = []
    log = Log(lambda where, reason, content: rejected.append((where, reason, content)))
    return list(read(*arguments, log)), rejected, log


# --- SQuAD ---


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad(tmp_path, version):
    path = write_json(tmp_path / "dev.json", published.squad(version))
    log = Log()
    first, second, third = squad.read([path], log)
    assert (first.id, first.answers, first.gold) == ("s1", ("Paris",), (True,))
    paris = ImportedDocument("Paris", "Paris is the capital of France. The Seine flows through Paris.")
    assert first.documents == second.documents == (paris,)
    assert second.answers == ("The Seine", "Seine")
    assert third.documents[0].title == "Trevi Fountain"
    assert third.where == f"{path}: data[1].paragraphs[0].qas[0] (id s3)"
    assert log.skipped == ({UNANSWERABLE: 1} if version == "2.0" else {})


QAS = ("data", 0, "paragraphs", 0, "qas")


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        (("data",), MISSING, ('"data" is missing; this is no SQuAD file',)),
        (("data", 0, "title"), 3, ('data[0]: "title" is a number',)),
        (("data", 0, "paragraphs"), {}, ('data[0]: "paragraphs" is an object; it must be a list',)),
        (("data", 0, "paragraphs", 0, "context"), " ", ('data[0].paragraphs[0]: "context" is empty',)),
        ((*QAS, 1, "id"), 7, ('.qas[1]: "id" is a number',)),
        ((*QAS, 1, "id"), "s1", ("qas[1] (id s1): the id 's1' is that of", "qas[0] (id s1) already")),
        ((*QAS, 1, "question"), None, ('qas[1] (id s2): "question" is missing',)),
        ((*QAS, 1, "answers"), [], ('qas[1] (id s2): "answers" is empty',)),
        ((*QAS, 1, "answers", 0, "answer_start"), 99, ('"answers"[0]."answer_start" is 99', "62 characters")),
        ((*QAS, 1, "answers", 0, "answer_start"), -1, ('"answer_start" is -1',)),
        ((*QAS, 1, "answers", 0, "answer_start"), 33, ("does not say 'The Seine'",)),
        ((*QAS, 1, "answers", 0, "answer_start"), "32", ('"answer_start" is a string; it must be a whole number',)),
        ((*QAS, 1, "answers", 0), "Seine", ('"answers"[0] is a string; it must be an object',)),
        ((*QAS, 1, "is_impossible"), True, ('"answers" has entries though "is_impossible" is true',)),
        ((*QAS, 1, "is_impossible"), "no", ('"is_impossible" is a string; it must be true or false',)),
        ((*QAS, 1, "question"), "\ud83d", ('"question" holds half of a surrogate pair',)),
    ],
)
def test_squad_departures(tmp_path, path, new, parts):
    file = write_json(tmp_path / "dev.json", changed(published.squad(), path, new))
    refused(squad.read([file]), file, None, *parts)


def test_squad_broken_json(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text('{"version": "1.1",\n "data": [}')
    refused(squad.read([str(path)]), path, 2, "column 11: not JSON")


def test_squad_goes_on_after_a_question_or_an_article(tmp_path):
    data = changed(published.squad(), (*QAS, 0, "answers", 0, "answer_start"), 9)
    examples, rejected, log = collected(squad.read, [write_json(tmp_path / "a.json", data)])
    assert [example.id for example in examples] == ["s2", "s3"]
    ((where, reason, content),) = rejected
    assert where.endswith("data[0].paragraphs[0].qas[0]") and "does not say 'Paris'" in reason
    assert content == data["data"][0]["paragraphs"][0]["qas"][0]
    assert log.rejected == 1 and log.first_rejected == reason
    data = changed(published.squad(), ("data", 0, "title"), 3)
    examples, rejected, _ = collected(squad.read, [write_json(tmp_path / "a.json", data)])
    assert [example.id for example in examples] == ["s3"] and len(rejected) == 1


def test_squad_without_titles_and_places(tmp_path):
    data = changed(published.squad(), ("data", 0, "title"), None)
    del data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"]
    examples, rejected, _ = collected(squad.read, [write_json(tmp_path / "a.json", data)])
    assert [example.id for example in examples] == ["s1", "s2", "s3"] and not rejected
    assert examples[0].documents[0].title == "" and examples[0].documents[0].full() == examples[0].documents[0].text


# --- HotpotQA and 2WikiMultiHopQA ---


def test_hotpotqa(tmp_path):
    path = write_json(tmp_path / "hotpot_dev_distractor_v1.json", published.hotpotqa())
    log = Log()
    first, second = hotpotqa.read([path], log)
    assert (first.id, first.answers) == ("5a7a06935542990198eaf050", ("Oslo",))
    text = "The Harbour is a novel. It won the Blue Prize in 1990."
    assert first.documents[1] == ImportedDocument("The Harbour", text)
    assert first.gold == (True, True, False)
    assert second.gold == (False, True, True)
    assert second.where == f"{path}:1: record 1 (_id 5a879ab05542996e4f30887e)"
    assert not log.skipped and not log.noted


def test_hotpotqa_as_it_is_published(tmp_path):
    """The fullwiki file lacks paragraphs, and one question of the development set names sentence 902 of five."""
    data = published.hotpotqa()
    data[0]["supporting_facts"] += [["Ann Lee", 902], ["Not Found", 0]]
    data[0]["context"].append(["Blank", [" ", ""]])
    data[1]["context"] = []
    log = Log()
    first, second = hotpotqa.read([write_json(tmp_path / "fullwiki.json", data)], log)
    assert first.gold == (True, True, False) and (second.documents, second.gold) == ((), ())
    assert log.noted == {hotpotqa.BEYOND_END: 1, hotpotqa.NOT_FOUND: 3, hotpotqa.NO_TEXT: 1}


HOTPOT_DEPARTURES = [
    ((1, "_id"), MISSING, ('record 1: "_id" is missing',)),
    ((1, "_id"), "5a7a06935542990198eaf050", ("record 1 (_id 5a7a", "is that of", "record 0", "already")),
    ((1, "question"), 7, ('record 1 (_id 5a879ab05542996e4f30887e): "question" is a number',)),
    ((1, "answer"), MISSING, ('"answer" is missing; the test file',)),
    ((1, "supporting_facts"), [], ('"supporting_facts" is empty',)),
    ((1, "supporting_facts"), MISSING, ('"supporting_facts" is missing; the test file',)),
    ((1, "supporting_facts", 0), ["Bergen"], ('"supporting_facts"[0] has 1 entries',)),
    ((1, "supporting_facts", 0, 1), "0", ('"supporting_facts"[0][1] is a string',)),
    ((1, "supporting_facts", 0, 1), -1, ('"supporting_facts"[0][1] is -1',)),
    ((1, "context"), None, ('"context" is missing',)),
    ((1, "context", 2), ["Bergen", "A port."], ('"context"[2][1] is a string; it must be a list',)),
    ((1, "context", 2), ["Bergen", ["A port."], 3], ('"context"[2] has 3 entries',)),
    ((1, "context", 2), ["", ["A port."]], ('"context"[2][0] is empty',)),
    ((1,), "a record", ("record 1: the record is a string; it must be an object",)),
]


@pytest.mark.parametrize(("path", "new", "parts"), HOTPOT_DEPARTURES)
@pytest.mark.parametrize("read, good", [(hotpotqa.read, published.hotpotqa), (two_wiki.read, published.two_wiki)])
def test_multi_hop_departures(tmp_path, read, good, path, new, parts):
    file = tmp_path / "train.json"
    file.write_text("[" + ",\n".join(map(json.dumps, changed(good(), path, new))) + "]")
    refused(read([str(file)]), file, "2: record 1", *parts)


def test_2wiki(tmp_path):
    path = write_json(tmp_path / "dev.json", published.two_wiki())
    first, second = two_wiki.read([path])
    assert (first.answers, first.gold, second.answers) == (("Oslo",), (True, True, False), ("yes",))
    aliases = write_lines(tmp_path / "id_aliases.json", published.ALIASES)
    first, second = two_wiki.read([path], None, aliases)
    assert first.answers == ("Oslo", "Christiania", "Kristiania", "Osloer") and second.answers == ("yes",)
    # The first release has no ids.
    data = [{k: v for k, v in record.items() if not k.endswith("_id") or k == "_id"} for record in published.two_wiki()]
    first, _ = two_wiki.read([write_json(tmp_path / "old.json", data)], None, aliases)
    assert first.answers == ("Oslo",)


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        ((0, "evidences"), {}, ('"evidences" is an object',)),
        ((0, "evidences", 1), ["Ann Lee", "Oslo"], ('"evidences"[1] has 2 entries',)),
        ((0, "evidences", 1, 2), None, ('"evidences"[1][2] is null',)),
        ((0, "answer_id"), 585, ('"answer_id" is a number',)),
        ((0, "supporting_facts", 0, 0), "Elsewhere", ("names 'Elsewhere', which is the title of no paragraph",)),
    ],
)
def test_2wiki_departures(tmp_path, path, new, parts):
    file = write_json(tmp_path / "dev.json", changed(published.two_wiki(), path, new))
    refused(two_wiki.read([file]), file, "1: record 0 (_id 5a7a06935542990198eaf050): ", *parts)


def test_2wiki_aliases_departures(tmp_path):
    path = write_json(tmp_path / "dev.json", published.two_wiki())
    aliases = write_lines(tmp_path / "a.json", [published.ALIASES[0], {"Q_id": "Q1", "aliases": "x", "demonyms": []}])
    refused(two_wiki.read([path], None, aliases), aliases, "2: ", '"aliases" is a string')


def test_broken_arrays_end_the_import_even_when_departures_are_collected(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(published.hotpotqa(), indent=1)[:-5])
    with pytest.raises(ClaraError, match=r"train.json:\d+: record 1: not JSON"):
        collected(hotpotqa.read, [str(path)])


# --- MuSiQue ---


def test_musique(tmp_path):
    path = write_lines(tmp_path / "musique_full_v1.0_dev.jsonl", published.musique())
    log = Log()
    first, second = musique.read([path], log)
    assert (first.id, second.id) == ("2hop__11_12", "2hop__11_13")
    assert first.answers == ("1070", "in 1070") and first.gold == (False, True, True)
    assert first.documents[1] == ImportedDocument("Ann Lee", "Ann Lee was born in Bergen.")
    assert log.skipped == {UNANSWERABLE: 1}


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        (("id",), MISSING, ('"id" is missing',)),
        (("answer",), MISSING, ('"answer" is missing; the test files',)),
        (("answerable",), 1, ('"answerable" is a number; it must be true or false',)),
        (("answer_aliases",), "1070", ('"answer_aliases" is a string; it must be a list',)),
        (("answer_aliases",), [""], ('"answer_aliases"[0] is empty',)),
        (("paragraphs", 1, "idx"), 0, ('"paragraphs"[1]."idx" is 0, as that of another',)),
        (("paragraphs", 1, "is_supporting"), None, ('"paragraphs"[1]."is_supporting" is missing',)),
        (("paragraphs", 1, "paragraph_text"), 5, ('"paragraphs"[1]."paragraph_text" is a number',)),
        (("question_decomposition", 1, "paragraph_support_idx"), 20, ('is 20, which is the "idx" of no paragraph',)),
        (("question_decomposition", 1, "paragraph_support_idx"), 0, ('whose "is_supporting" is false',)),
        (("question_decomposition", 1, "paragraph_support_idx"), None, ('"paragraph_support_idx" is missing',)),
    ],
)
def test_musique_departures(tmp_path, path, new, parts):
    records = published.musique()
    records[2] = changed(records[2], path, new)
    file = write_lines(tmp_path / "dev.jsonl", ["", *records])
    refused(musique.read([file]), file, "4", *parts)
    examples, rejected, _ = collected(musique.read, [file])
    assert [example.id for example in examples] == ["2hop__11_12"]
    assert [where for where, *_ in rejected] == [f"{file}:4"]
    assert json.loads(rejected[0][2]) == records[2]


def test_lines_that_are_no_json(tmp_path):
    good = published.musique()
    file = write_lines(tmp_path / "dev.jsonl", [good[0], '{"id": 1', good[2]])
    refused(musique.read([file]), file, "2: column ", "not JSON")
    examples, rejected, _ = collected(musique.read, [file])
    assert len(examples) == 2 and rejected[0][2].strip() == b'{"id": 1'


# --- Natural Questions ---


def test_nq_open(tmp_path):
    records = published.nq_open()
    path = write_lines(tmp_path / "NQ-open.dev.jsonl", [*records, records[0]])
    log = Log()
    first, second = natural_questions.read_open([path], log)
    assert first.answers == ("14 December 1972 UTC", "1972") and first.documents == ()
    assert first.id.startswith("nq_") and len(first.id) == 19 and first.id != second.id
    assert log.skipped == {SAME_AGAIN: 1}
    (again,) = natural_questions.read_open([write_lines(tmp_path / "other.jsonl", records[:1])])
    assert again.id == first.id


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        ((1, "question"), MISSING, ('"question" is missing',)),
        ((1, "answer"), MISSING, ('"answer" is missing',)),
        ((1, "answer"), [], ('"answer" is empty',)),
        ((1, "answer"), "Bobby Scott", ('"answer" is a string; it must be a list',)),
        ((1, "answer", 1), 3, ('"answer"[1] is a number',)),
        ((1,), ["q", "a"], ("the record is a list",)),
    ],
)
def test_nq_open_departures(tmp_path, path, new, parts):
    file = write_lines(tmp_path / "x.jsonl", changed(published.nq_open(), path, new))
    refused(natural_questions.read_open([file]), file, "2", *parts)


def test_lost_in_the_middle(tmp_path):
    path = write_lines(tmp_path / "nq-open-2_total_documents_gold_at_1.jsonl.gz", published.lost_in_the_middle())
    (example,) = natural_questions.read_lost_in_the_middle([path])
    assert example.gold == (False, True) and example.answers == ("Wilhelm Conrad Röntgen", "Röntgen")
    assert example.documents[1] == ImportedDocument("Nobel Prize", "Röntgen got it in 1901.")


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        ((0, "answers"), MISSING, ('"answers" is missing',)),
        ((0, "ctxs", 0, "text"), MISSING, ('"ctxs"[0]."text" is missing',)),
        ((0, "ctxs", 0, "hasanswer"), "no", ('"ctxs"[0]."hasanswer" is a string',)),
        ((0, "ctxs", 0, "isgold"), MISSING, ('"ctxs"[0]."isgold" is missing; a file of search results',)),
        ((0, "ctxs", 0, "isgold"), True, ('"ctxs" has 2 entries whose "isgold" is true',)),
        ((0, "ctxs", 1, "isgold"), False, ('"ctxs" has 0 entries whose "isgold" is true',)),
    ],
)
def test_lost_in_the_middle_departures(tmp_path, path, new, parts):
    file = write_lines(tmp_path / "x.jsonl", changed(published.lost_in_the_middle(), path, new))
    refused(natural_questions.read_lost_in_the_middle([file]), file, "1", *parts)


def test_dpr(tmp_path):
    log = Log()
    (example,) = dpr.read([write_json(tmp_path / "biencoder-nq-train.json", published.dpr())], log)
    assert [document.title for document in example.documents] == ["Trevi", "Rome", "Fountain", "", "Oslo"]
    assert example.gold == (True, True, False, False, False)
    assert log.skipped == {dpr.NO_POSITIVE: 1}


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        ((1, "positive_ctxs"), MISSING, ('"positive_ctxs" is missing',)),
        ((1, "answers"), [], ('"answers" is empty',)),
        ((1, "negative_ctxs"), ["a text"], ('"negative_ctxs"[0] is a string; it must be an object',)),
        ((1, "hard_negative_ctxs", 0, "text"), "", ('"hard_negative_ctxs"[0]."text" is empty',)),
        ((1, "hard_negative_ctxs", 0, "title"), 0, ('"hard_negative_ctxs"[0]."title" is a number',)),
    ],
)
def test_dpr_departures(tmp_path, path, new, parts):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(changed(published.dpr(), path, new), indent=4))  # as it is published
    with pytest.raises(ClaraError, match=rf"^{file}:\d\d: record 1: ") as caught:
        list(dpr.read([str(file)]))
    assert parts[0] in str(caught.value)


# --- BEIR ---


def test_beir(tmp_path):
    qrels = published.beir(tmp_path)
    log = Log()
    examples = list(beir.read([qrels], log))
    assert [example.id for example in examples] == ["q1", "q2"]
    first, second = examples
    assert (first.question, first.answers, first.gold) == ("trevi", (), (True, False))
    assert first.documents == (
        ImportedDocument("Trevi", "The fountain is in Rome.", "d1"),
        ImportedDocument("", "Oslo is cold.", "d2"),
    )
    assert second.documents == (ImportedDocument("", "Norway", "d3"),)  # a title without a text is the text
    assert log.noted == {beir.NO_TEXT: 1}
    assert list(beir.read([str(tmp_path)])) == examples  # the folder has one qrels file
    assert [document.id for document in beir.read_corpus([qrels])] == ["d1", "d2", "d3", "d5"]
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(ClaraError, match="holds test.tsv, train.tsv; name one of them"):
        list(beir.read([str(tmp_path)]))


def test_beir_without_a_relevant_document(tmp_path):
    log = Log()
    (example,) = beir.read([published.beir(tmp_path, ["q1\td1\t0", "q2\td4\t1", "q2\td1\t-1", "q0\td5\t1"])], log)
    assert example.id == "q0"
    assert log.skipped == {beir.NO_RELEVANT: 2}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("q1\td9\t1", ("the corpus-id 'd9' is in no line of", "corpus.jsonl")),
        ("q9\td1\t1", ("the query-id 'q9' is in no line of", "queries.jsonl")),
        ("q1\td1", ("has 2 columns",)),
        ("q1 d1 1", ("has 1 columns",)),
        ("q1\td1\thigh", ("the score is 'high'",)),
        ("q2\td3\t1", ("'q2' and 'd3' are judged on", "test.tsv:2 already")),
    ],
)
def test_beir_qrels_departures(tmp_path, row, parts):
    qrels = published.beir(tmp_path, ["q2\td3\t2", row, "q1\td2\t1"])
    refused(beir.read([qrels]), qrels, "3: ", *parts)
    examples, rejected, _ = collected(beir.read, [qrels])
    assert [example.id for example in examples] == ["q2", "q1"]
    assert [(where, content.decode().rstrip()) for where, _, content in rejected] == [(f"{qrels}:3", row)]


def test_other_beir_departures(tmp_path):
    qrels = published.beir(tmp_path)
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    good = corpus.read_text()
    for line, part in [
        ({"_id": "d1", "text": "x"}, "\"_id\" is 'd1', as on an earlier line"),
        ({"_id": 7, "text": "x"}, '"_id" is a number'),
        ({"_id": "d7", "title": "x"}, '"text" is missing'),
        ({"_id": "d7", "text": ["x"]}, '"text" is a list'),
    ]:
        corpus.write_text(good + json.dumps(line) + "\n")
        refused(beir.read([qrels]), corpus, "6: ", part)
    corpus.write_text(good)
    queries.write_text('{"_id": "q1", "text": "trevi"}\n{"_id": "q2"}\n')
    refused(beir.read([qrels]), queries, "2: ", '"text" is missing')
    queries.unlink()
    refused(beir.read([qrels]), tmp_path, None, "has no queries.jsonl")
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    refused(beir.read([qrels]), qrels, "1: ", "must be the header query-id corpus-id score")


# --- CLaRa's data sets ---


@pytest.mark.parametrize(
    ("stage", "kept"), [("scp", 2), ("stage1", 2), ("instruct", 2), ("end_to_end", 2), ("stage2_pretrain_retrieval", 1)]
)
def test_clara(tmp_path, stage, kept):
    lines = [record for records in published.clara().values() for record in records]
    path = write_lines(tmp_path / "train.jsonl", [*lines, *lines])
    log = Log()
    found = list(clara_multi_stage.read([path], stage, log))
    assert len(found) == kept
    assert log.skipped[SAME_AGAIN] == kept
    for fields in found:
        record = parse_record(fields, clara_multi_stage.STAGE_NAMES.get(stage, stage), "out:1")
        assert record.qid.startswith("clara_")
    if stage == "instruct":
        assert found[0]["answer"] == "It was Ann." and found[0]["golden_answers"] == ["Ann"]
        assert len(found[0]["docs"]) == 5
    assert sum(log.skipped.values()) + kept == 8


def test_clara_evaluation_files(tmp_path):
    folder = tmp_path / "stage2_eval" / "hotpotqa"
    folder.mkdir(parents=True)
    (record,) = published.clara()["end_to_end"]
    path = write_lines(folder / "eval_processed_with_pos.jsonl", [record, record | {"qid": "h2"}])
    first, second = clara_multi_stage.read([path], "end_to_end")
    assert first["qid"].startswith("hotpotqa_") and second["qid"] == "h2" and second["pos_index"] == [1]
    assert clara_multi_stage.patterns(str(tmp_path)) == f"{tmp_path}/**/*.jsonl*"
    path = write_lines(folder / "eval_processed_with_pos.jsonl", [record, record | {"pos_index": []}])
    refused(clara_multi_stage.read([path], "end_to_end"), path, "2: ", '"pos_index" is empty in a file "with_pos"')
    normal = write_lines(folder / "eval_processed_no_pos.jsonl", [record | {"pos_index": []}])
    assert len(list(clara_multi_stage.read([normal], "end_to_end"))) == 1


def test_clara_departures(tmp_path):
    scp, question = published.clara()["scp"][0], published.clara()["end_to_end"][0]
    for line, stage, part in [
        (question | {"pos_index": [2]}, "instruct", '"pos_index"[0] is 2, but the record has 2 documents'),
        (question | {"docs": []}, "end_to_end", '"docs" is empty'),
        (scp | {"answers": ["A1"]}, "instruct", '"question" has 2 entries'),
        (scp | {"docs": ["a", "b"]}, "scp", "has exactly one"),
        (question | {"data_type": "other"}, "scp", "\"data_type\" is 'other'"),
        (["no record"], "scp", "the line holds a list"),
        (question | {"qid": "taken"}, "instruct", "the id 'taken' is that of"),
    ]:
        path = write_lines(tmp_path / "x.jsonl", [question | {"qid": "taken"}, line])
        refused(clara_multi_stage.read([path], stage), path, "2: ", part)
    with pytest.raises(ClaraError, match="--stage: 'stage3' is unknown"):
        list(clara_multi_stage.read([path], "stage3"))


# --- what no task needs ---


def without(value, names):
    """The value without the fields of these names, wherever they are."""
    if isinstance(value, list):
        return [without(item, names) for item in value]
    if isinstance(value, dict):
        return {name: without(item, names) for name, item in value.items() if name not in names}
    return value


@pytest.mark.parametrize(
    ("read", "write", "made", "names"),
    [
        (squad.read, write_json, published.squad, ("id", "title", "version", "answer_start", "plausible_answers")),
        (two_wiki.read, write_json, published.two_wiki, ("evidences", "evidences_id", "type", "entity_ids")),
        (hotpotqa.read, write_json, published.hotpotqa, ("type", "level")),
        (dpr.read, write_json, published.dpr, ("dataset", "score", "title_score", "passage_id", "psg_id", "title")),
        (dpr.read, write_json, published.dpr, ("negative_ctxs", "hard_negative_ctxs")),
        (musique.read, write_lines, published.musique, ("answer_aliases", "question_decomposition", "title")),
        (musique.read, write_lines, lambda: published.musique()[:1], ("answerable",)),
    ],
)
def test_what_no_task_needs_may_be_missing(tmp_path, read, write, made, names):
    whole = [*read([write(tmp_path / "whole.json", made())])]
    found = [*read([write(tmp_path / "less.json", without(made(), names))])]
    assert [example.question for example in found][: len(whole)] == [example.question for example in whole]
    assert all(example.answers and any(example.gold) for example in found)


def test_squad_with_questions_that_cannot_be_answered_and_paragraphs_without_any(tmp_path):
    data = published.squad()
    data["data"][0]["paragraphs"] += [{"context": "Nobody asked."}, {"context": "x", "qas": [{"question": "Why?"}]}]
    data["data"][0]["paragraphs"][-1]["qas"][0]["is_impossible"] = True
    log = Log()
    assert len([*squad.read([write_json(tmp_path / "a.json", data)], log)]) == 3
    assert log.skipped == {UNANSWERABLE: 1}
