"""Small files in the form in which the data sets are published, made anew for every test."""

import gzip
import json


def squad(version="1.1"):
    """Two articles, three questions; in version 2.0 a fourth that cannot be answered."""
    paris = "Paris is the capital of France. The Seine flows through Paris."
    qas = [
        {"id": "s1", "question": "What is the capital of France?", "answers": [answer("Paris", 0)]},
        {
            "id": "s2",
            "question": "Which river flows through Paris?",
            "answers": [answer("The Seine", 32), answer("Seine", 36), answer("Seine", 36)],
        },
    ]
    if version == "2.0":
        qas = [entry | {"is_impossible": False} for entry in qas]
        plausible = {"plausible_answers": [answer("Paris", 0)]}
        qas.append({"id": "s4", "question": "Who built it?", "answers": [], "is_impossible": True} | plausible)
    article = {"title": "Paris", "paragraphs": [{"context": paris, "qas": qas}]}
    rome = {"id": "s3", "question": "Where is the Trevi Fountain?", "answers": [answer("Rome", 26)]}
    other = {
        "title": "Trevi_Fountain",
        "paragraphs": [{"context": "The Trevi Fountain is in “Rome”.", "qas": [rome]}],
    }
    return {"data": [article, other], "version": version}


def answer(text, start):
    return {"text": text, "answer_start": start}


def hotpotqa():
    """A bridge and a comparison."""
    context = [
        ["Ann Lee", ["Ann Lee wrote The Harbour.", " She lives in Oslo."]],
        ["The Harbour", ["The Harbour is a novel.", " It won the Blue Prize in 1990."]],
        ["Oslo", ["Oslo is the capital of Norway."]],
    ]
    return [
        {
            "_id": "5a7a06935542990198eaf050",
            "question": "Where does the author of The Harbour live?",
            "answer": "Oslo",
            "supporting_facts": [["Ann Lee", 0], ["Ann Lee", 1], ["The Harbour", 0]],
            "context": context,
            "type": "bridge",
            "level": "hard",
        },
        {
            "_id": "5a879ab05542996e4f30887e",
            "question": "Are Oslo and Bergen both in Norway?",
            "answer": "yes",
            "supporting_facts": [["Bergen", 0], ["Oslo", 0]],
            "context": [*context[1:], ["Bergen", ["Bergen is a port in Norway."]]],
            "type": "comparison",
            "level": "medium",
        },
    ]


def two_wiki():
    """HotpotQA's form with evidences and Wikidata ids."""
    evidences = [
        [["The Harbour", "author", "Ann Lee"], ["Ann Lee", "residence", "Oslo"]],
        [["Oslo", "country", "Norway"], ["Bergen", "country", "Norway"]],
    ]
    ids = [[["Q1", "author", "Q2"], ["Q2", "residence", "Q585"]], []]
    added = [
        {"evidences": evidences[i], "evidences_id": ids[i], "answer_id": ["Q585", None][i], "entity_ids": "Q1_Q2"}
        for i in range(2)
    ]
    types = ["compositional", "comparison"]
    return [record | added[i] | {"type": types[i]} for i, record in enumerate(hotpotqa())]


ALIASES = [
    {"Q_id": "Q585", "aliases": ["Christiania", "Kristiania"], "demonyms": ["Osloer"]},
    {"Q_id": "Q7", "aliases": [], "demonyms": []},
]


def musique():
    """Two questions, the second also without its supporting paragraph, as in the full sets."""
    paragraphs = [
        {"idx": 0, "title": "Oslo", "paragraph_text": "Oslo is in Norway.", "is_supporting": False},
        {"idx": 1, "title": "Ann Lee", "paragraph_text": "Ann Lee was born in Bergen.", "is_supporting": True},
        {"idx": 2, "title": "Bergen", "paragraph_text": "Bergen was founded in 1070.", "is_supporting": True},
    ]
    decomposition = [
        {"id": 11, "question": "Ann Lee >> place of birth", "answer": "Bergen", "paragraph_support_idx": 1},
        {"id": 12, "question": "When was #1 founded?", "answer": "1070", "paragraph_support_idx": 2},
    ]
    first = {
        "id": "2hop__11_12",
        "paragraphs": paragraphs,
        "question": "When was the birthplace of Ann Lee founded?",
        "question_decomposition": decomposition,
        "answer": "1070",
        "answer_aliases": ["in 1070", "1070"],
        "answerable": True,
    }
    taken_out = [part | {"paragraph_support_idx": None} for part in decomposition]
    unanswerable = first | {
        "paragraphs": paragraphs[:1],
        "question_decomposition": taken_out,
        "answerable": False,
    }
    second = first | {"id": "2hop__11_13", "question": "In which year was Ann Lee's birthplace founded?"}
    return [first, unanswerable, second]


def nq_open():
    return [
        {"question": "when was the last time anyone was on the moon", "answer": ["14 December 1972 UTC", "1972"]},
        {"question": "who wrote he ain't heavy he's my brother lyrics", "answer": ["Bobby Scott", "Bob Russell"]},
    ]


def lost_in_the_middle():
    gold = {"title": "Nobel Prize", "text": "Röntgen got it in 1901.", "hasanswer": True, "isgold": True}
    found = {
        "id": "71445",
        "title": "Physics",
        "text": "Physics is a science.",
        "score": "1.0510446",
        "hasanswer": False,
        "original_retrieval_index": 0,
        "isgold": False,
    }
    return [
        {
            "question": "who got the first nobel prize in physics",
            "answers": ["Wilhelm Conrad Röntgen", "Röntgen"],
            "ctxs": [found, gold],
            "nq_annotated_gold": {
                "title": "Nobel Prize",
                "long_answer": "...",
                "chunked_long_answer": "Röntgen got it in 1901.",
                "short_answers": ["Röntgen"],
            },
        }
    ]


def dpr():
    def passage(title, text):
        return {"title": title, "text": text, "score": 13.5, "title_score": 0, "passage_id": "121"}

    record = {
        "dataset": "nq_train_psgs_w100",
        "question": "where is the trevi fountain",
        "answers": ["Rome"],
        "positive_ctxs": [passage("Trevi", "The fountain is in Rome."), passage("Rome", "Rome is old.")],
        "negative_ctxs": [passage("Oslo", "Oslo is cold.")],
        "hard_negative_ctxs": [passage("Fountain", "A fountain spouts water."), passage("", "Rome again.")],
    }
    return [record, record | {"question": "who is nobody", "positive_ctxs": []}]


def clara():
    """One record of each stage."""
    return {
        "scp": [
            {"data_type": "qa", "question": ["Q1?", "Q2?"], "answers": ["A1", "A2"], "docs": ["A document."]},
            {"data_type": "paraphrase", "question": "", "answers": ["Told again."], "docs": ["A document."]},
        ],
        "instruct": [
            {"question": "Who?", "docs": ["d0", "d1", "d2", "d3", "d4"], "gold_answer": "Ann", "answer": "It was Ann."}
        ],
        "end_to_end": [{"question": "Who?", "answer": "Ann", "docs": ["d0", "d1"], "pos_index": [1]}],
    }


def beir(folder, qrels=("q1\td1\t1", "q1\td2\t0", "q2\td3\t2")):
    """A data set's folder; its qrels/test.tsv is returned."""
    corpus = [
        {"_id": "d1", "title": "Trevi", "text": "The fountain is in Rome.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "Oslo is cold.", "metadata": {}},
        {"_id": "d3", "title": "Norway", "text": "", "metadata": {}},
        {"_id": "d4", "title": "", "text": "", "metadata": {}},
        {"_id": "d5", "title": "Bergen", "text": "Bergen is a port.", "metadata": {}},
    ]
    queries = [{"_id": f"q{i}", "text": text, "metadata": {}} for i, text in enumerate(["x", "trevi", "fjords"])]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    path = folder / "qrels" / "test.tsv"
    path.write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    return str(path)


def write_json(path, value):
    """As one line, as most of the sets are published."""
    path.write_text(json.dumps(value))
    return str(path)


def write_lines(path, records):
    content = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)
