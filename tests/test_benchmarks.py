"""Benchmarks run from end to end on a model of no size, those of accelerators where none is."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks import (
    accelerator,
    corpus_part,
    fresh_states,
    fused_rankings,
    memory_bytes,
    memory_codes,
    squad_search,
    vector_index,
)
from clara_jax.api import Clara
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import Record
from clara_jax.method.stages import STAGES
from clara_jax.retrieval.encodings import ENCODINGS
from tests import tiny
from tests.evaluation import made_up
from tests.test_rag_pipeline import write_checkpoint

BASE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96}


@pytest.mark.slow
def test_the_accelerators_benchmark_times_every_case(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"num_attention_heads": 4, "num_key_value_heads": 2}))
    small = ["--rows=8", "--tokens=900", "--candidates=3", "--repeats=1", "--batches=1,3"]
    files = [f"--base-config={tmp_path / 'config.json'}", f"--json={tmp_path / 'out.json'}"]
    monkeypatch.setattr(sys, "argv", ["accelerator", *small, *files])
    accelerator.main()
    found = {row["case"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert list(found) == [*STAGES, "compress", "decode 1", "decode 3"]
    assert all(row.get("tokens/s/device", row.get("tokens/s", 0)) > 0 for row in found.values())
    assert found["scp"]["tokens"] == 8 * 900


def test_formats_of_memories_are_measured_beside_the_memories_as_they_are(mesh, tmp_path):
    clara = Clara.load(write_checkpoint(tmp_path, mesh), mesh=mesh, precision="float32")
    documents = tuple(tiny.document(i) for i in range(12))
    asked = [f"Where was number {i + 1} born?" for i in range(4)]
    records = [
        Record("question", documents[i : i + 6], (question,), ("Oslo",), ("Oslo",), (1,), "", "")
        for i, question in enumerate(asked)
    ]
    computed, *stored = memory_bytes.measure(clara, records, 4)
    assert [row["encoding"] for row in stored] == list(ENCODINGS)
    metrics = ("F1", "EM", "Recall@5")
    assert stored[0]["encoding"] == "float32"
    assert all(stored[0][f"{name} difference"] == [0, 0, 0] for name in metrics)
    assert 0 < computed["Recall@5"] <= 100 and computed["bytes"] is None
    sizes = {row["encoding"]: row["bytes"] for row in stored}
    assert sizes["float32"] == 2 * sizes["bfloat16"] and sizes["int4"] < sizes["int8"] < sizes["bfloat16"]


def test_formats_of_memories_as_a_picture(mesh, tmp_path):
    rows = [
        {"encoding": "as computed", "bytes": None},
        *({"encoding": name, "bytes": 2**i} for i, name in enumerate("abb")),
    ]
    for place, row in enumerate(rows):
        for metric in ("F1", "Recall@5"):
            row |= {metric: 30 - place, f"{metric} difference": [-place, -place - 2, -place + 1]}
    memory_bytes.draw(rows, tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").read_bytes().startswith(b"\x89PNG")


def test_the_common_share_is_one_of_equal_vectors_and_none_of_opposite_ones():
    x = np.random.default_rng(0).normal(size=(400, 8))
    assert fresh_states.common_share(np.ones((3, 2))) == pytest.approx(1)
    assert fresh_states.common_share(np.concatenate([x, -x])) == pytest.approx(0)
    assert fresh_states.common_share(x + 1) == pytest.approx(0.5, abs=0.05)  # the mean is as long as what differs
    assert fresh_states.rms(np.array([[3.0, 4.0], [0.0, 5.0]])) == pytest.approx(12.5**0.5)


def test_passages_are_compressed_once(mesh, tmp_path, monkeypatch):
    clara = Clara.load(write_checkpoint(tmp_path, mesh), mesh=mesh, precision="float32")
    records = [
        Record("q", tuple(tiny.document(i) for i in range(at, at + 3)), ("q",), (), (), (0,), "", "") for at in (0, 2)
    ]
    file = str(tmp_path / "memories")
    first = memory_bytes.passages(clara, records, file)
    assert first.texts == tuple(tiny.document(i) for i in range(5))
    np.testing.assert_array_equal(first.array, clara.compress(list(first.texts)).array)
    monkeypatch.setattr(Clara, "compress", None)
    again = memory_bytes.passages(clara, records[1:], file)
    assert again.texts == first.texts[2:]
    np.testing.assert_array_equal(again.array, first.array[2:])


def test_product_codes_find_the_centroids_that_vectors_are_made_of():
    rng = np.random.default_rng(0)
    books = rng.normal(size=(8, 60, 2)).astype(np.float32)
    books /= np.linalg.norm(books, axis=-1, keepdims=True) * np.sqrt(8)  # so that all vectors have length 1
    vectors = np.concatenate([book[rng.integers(0, 60, 4000)] for book in books], axis=1) * 3
    code = memory_codes.ProductCode(vectors[:3000], 2)
    error = ((code(vectors[3000:]) - vectors[3000:]) ** 2).sum() / (vectors[3000:] ** 2).sum()
    assert error < 1e-4 and code.centroid_bytes == 8 * 256 * 2 * 2


def test_codes_of_memories_are_compared_at_their_bytes():
    memories = np.random.default_rng(0).normal(size=(40, 8, 16)).astype(np.float32)
    rows = {row["code"]: row for row in memory_codes.measure(memories)}
    assert (
        rows["int8"]["bytes"] == 8 * 20
        and rows["int4"]["bytes"] == rows["product code, groups of 2"]["bytes"] == 8 * 12
    )
    assert (
        rows["int8"]["error"]
        < rows["int4-32"]["error"]
        <= rows["int4"]["error"]
        < rows["product code, groups of 8"]["error"]
        < 1.2
    )
    assert rows["int8"]["same first five"] > rows["product code, groups of 8"]["same first five"]


def test_indexes_of_search_vectors_go_on_and_are_measured(monkeypatch, tmp_path, capsys):
    """Two of three, then the third in the same folder: each finds what the inner products of all vectors find."""
    command = ["vector_index", "--vectors", "3000", "--questions", "6", "--probes", "50", "--folder", str(tmp_path)]
    for indexes in (("ivf_sq", "ivf_pq"), ("ivf_sq", "ivf_rq")):
        monkeypatch.setattr(sys, "argv", [*command, "--index", *indexes])
        vector_index.main()
    found = json.loads((tmp_path / "results.json").read_text())["indexes"]
    assert list(found) == ["ivf_sq", "ivf_pq", "ivf_rq"]
    for about in found.values():
        alone, rescored = about["rows"]
        assert (alone["search"], rescored["search"]) == ("index alone", "rescored") and about["bytes"] > 0
        # Of 400 survivors the exact score loses hardly any; chance is 0.02.
        assert rescored["recall@5"] > 0.8 and rescored["recall@20"] >= alone["recall@20"] > 0.3
    queries = vector_index.questions(2, 500)
    exact = vector_index.vectors(0, 500)
    assert vector_index.best(queries, 500)[0].tolist() == np.argsort(-(exact @ queries[0]))[:20].tolist()
    monkeypatch.setattr(sys, "argv", [*command, "--vectors", "2000"])
    with pytest.raises(ClaraError, match="holds 3,000 vectors"):
        vector_index.main()


def _compact_squad(folder, questions):
    """Write paragraphs 0 to 5 of training and 6 to 9 held out, and two questions about each."""
    texts = [{"id": number, "text": f"paragraph {number}"} for number in range(10)]
    rows = [
        {"question": f"question {n}.{i}", "gold_answer": f"answer {n}", "gold_id": n, "bm25": [9, 1, n]}
        for n in range(10)
        for i in range(2)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    for side, some in (("train", rows[:12]), ("dev", rows[12:])):
        lines = (json.dumps({key: row[key] for key in questions}) + "\n" for row in some)
        (folder / f"questions.{side}.idx.jsonl").write_text("".join(lines))


def test_a_part_of_squad_has_whole_paragraphs_and_candidates_of_its_own_side(monkeypatch, tmp_path, capsys):
    _compact_squad(tmp_path, ("question", "gold_answer", "gold_id", "bm25"))
    given = [f"--data={tmp_path}", f"--output={tmp_path / 'part'}", "--paragraphs=4", "--questions=5", "--candidates=3"]
    monkeypatch.setattr(sys, "argv", ["squad_search", *given])
    squad_search.main()
    assert "train.jsonl: 8 questions about 4 paragraphs" in capsys.readouterr().out
    for side, paragraphs, count in (("train", range(4), 8), ("dev", range(6, 10), 5)):
        records = [json.loads(line) for line in (tmp_path / "part" / f"{side}.jsonl").read_text().splitlines()]
        assert len(records) == count
        for record in records:
            (place,), number = record["pos_index"], record["gold_answer"].split()[1]
            assert record["docs"][place] == f"paragraph {number}"
            assert record["question"].startswith(f"question {number}.")
            assert len(set(record["docs"])) == 3
            assert {int(text.split()[1]) for text in record["docs"]} <= set(paragraphs)
            hard = "paragraph 1" if side == "train" else "paragraph 9"  # what BM25 ranks first on that side
            assert hard in record["docs"]


@pytest.mark.parametrize(
    ("fields", "option", "message"),
    [
        (("question", "gold_answer", "gold_id"), "--candidates=3", "questions.train.idx.jsonl:1: no bm25"),
        (("question", "gold_answer", "gold_id", "bm25"), "--candidates=5", "4 paragraphs, and --candidates 5"),
    ],
)
def test_a_part_of_squad_names_what_is_missing(fields, option, message, monkeypatch, tmp_path):
    _compact_squad(tmp_path, fields)
    given = [f"--data={tmp_path}", f"--output={tmp_path / 'part'}", "--paragraphs=4", option]
    monkeypatch.setattr(sys, "argv", ["squad_search", *given])
    with pytest.raises(ClaraError, match=message):
        squad_search.main()


def test_a_part_of_a_corpus_has_what_is_asked_for_and_others(monkeypatch, tmp_path, capsys):
    lines = [json.dumps({"id": f"p{number}", "title": "T", "text": f"passage {number}"}) for number in range(30)]
    corpus, questions, output = tmp_path / "all.jsonl", tmp_path / "questions.jsonl", tmp_path / "part.jsonl"
    corpus.write_text("\n".join(lines) + "\n")
    questions.write_text("".join(json.dumps({"gold_passage": p}) + "\n" for p in ("p20", "p3", "p20", "p7")))
    given = [f"--data={corpus}", f"--questions={questions}", f"--output={output}", "--limit=3", "--others=5"]
    monkeypatch.setattr(sys, "argv", ["corpus_part", *given])
    corpus_part.main()
    assert "7 passages, 2 of which answer a question" in capsys.readouterr().out
    written = output.read_text().splitlines()
    assert set(written) <= set(lines) and len(set(written)) == 7
    assert [line for line in lines if line in written] == written  # in the order of the corpus
    assert {"p3", "p20"} <= {json.loads(line)["id"] for line in written}
    corpus_part.main()
    assert output.read_text().splitlines() == written

    questions.write_text(json.dumps({"gold_passage": "p31"}) + "\n")
    with pytest.raises(ClaraError, match="the corpus has no passage 'p31'"):
        corpus_part.main()
    assert output.read_text().splitlines() == written


@pytest.fixture
def two_rankers(tmp_path):
    """A report of two rankers, which know three questions and two of eight, one of them in common, and of no ranker.

    Of six candidates the right one is the fourth for the first ranker where it does not know, the last for the other.
    """

    def six(predictions, wrong):
        orders = [(1, 0, 2, 3, 4, 5) if found.order[0] == 1 else wrong for found in predictions]
        return [
            dataclasses.replace(found, order=order, scores=None)
            for found, order in zip(predictions, orders, strict=True)
        ]

    systems = {
        "m/clara": six(made_up.ranking({0, 1, 2}), (0, 2, 3, 1, 4, 5)),
        "rank/bm25": six(made_up.ranking({0, 6}), (0, 2, 3, 4, 5, 1)),
        "m/no_memory": made_up.answers({0}),
    }
    cases = [dataclasses.replace(case, documents=(*case.documents, "4", "5")) for case in made_up.suite().cases]
    suite = dataclasses.replace(made_up.suite(), cases=tuple(cases))
    return made_up.directory(tmp_path / "report", [suite], {suite.name: systems})


def test_a_fusion_has_first_what_both_have_and_next_what_one_has(monkeypatch, two_rankers, capsys):
    monkeypatch.setattr(sys, "argv", ["fused_rankings", str(two_rankers)])
    fused_rankings.main()
    lines = capsys.readouterr().out.splitlines()
    means = {
        name.strip(): [cell.split()[0] for cell in cells] for _, name, *cells, _ in (x.split("|") for x in lines[5:])
    }
    assert means == {
        "m/clara": ["37.5", "37.5", "100.0"],
        "rank/bm25": ["25.0", "25.0", "25.0"],
        "the fusion": ["12.5", "50.0", "100.0"],
        "the fusion - m/clara": ["−25.0", "12.5", "0.0"],
        "the fusion - rank/bm25": ["−12.5", "25.0", "75.0"],
    }


def test_a_depth_beyond_the_candidates_has_no_recall(monkeypatch, tmp_path, capsys):
    suite = made_up.suite()
    systems = {"m/clara": made_up.ranking({0, 1, 2}), "rank/bm25": made_up.ranking({0, 6})}
    directory = made_up.directory(tmp_path / "report", [suite], {suite.name: systems})
    monkeypatch.setattr(sys, "argv", ["fused_rankings", str(directory)])
    fused_rankings.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[5:]]
    assert len(rows) == 5 and all(row[4].strip() == "–" and row[2].strip() != "–" for row in rows)


@pytest.mark.parametrize(
    ("pair", "message"),
    [(("m/clara", "rank/minilm"), "no system 'rank/minilm'; it has"), (("m/clara", "m/no_memory"), "no two of these")],
)
def test_what_cannot_be_fused_is_named(pair, message, monkeypatch, two_rankers):
    monkeypatch.setattr(sys, "argv", ["fused_rankings", str(two_rankers), "--fuse", *pair])
    with pytest.raises(ClaraError, match=message):
        fused_rankings.main()
