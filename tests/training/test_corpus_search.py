"""Candidates from the whole corpus: what is drawn, that it moves with the query reasoner, and going on bit for bit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from clara_jax.checkpoints.retention import checkpoints
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.inference.memory_store import document_key
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.memory_count import FIXED, PROPORTIONAL
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import flatten
from clara_jax.method.stages import rank_documents
from clara_jax.model.sharding import put_batch
from clara_jax.training.config import ModelSection, RunConfig
from clara_jax.training.config_parsing import from_json, to_json
from clara_jax.training.corpus_search import CorpusSearch
from clara_jax.training.loop import run
from clara_jax.training.metrics import read_metrics
from clara_jax.training.resume import check_same_config
from clara_jax.training.stopping import StopSignal
from tests import tiny
from tests.configurations import stage

EVERY, CANDIDATES, STEPS = 2, 6, 5


def config(place, memory_count=FIXED, **topk):
    optimizer = dict(batch_size=4, accumulate=2, learning_rate=2e-2, warmup=0.0, steps=STEPS)
    fields = dict(k=2, candidates=CANDIDATES, search_every=EVERY) | topk
    one = stage(
        "end_to_end",
        data=dict(train=(f"{place}/end_to_end.jsonl",), memories="run"),
        evaluation=dict(data=(f"{place}/held_out.jsonl",), answers=0),
        optimizer=optimizer,
        topk=fields,
        saving=dict(every=1),
    )
    return RunConfig(
        (one,),
        ModelSection(str(place / "base"), "float32"),
        ClaraConfig(doc_max_length=24, compress_rate=4, lora_rank=4, lora_dropout=0.1, memory_count=memory_count),
        mesh=(1, 1),
        reporting=dict(progress=False, tensorboard=False, show=0),
        saving=dict(keep=9),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny.write_base(folder / "base")
    tiny.write_records(folder)
    lines = (folder / "end_to_end.jsonl").read_text().splitlines(keepends=True)
    (folder / "end_to_end.jsonl").write_text("".join(lines[:18]))
    (folder / "held_out.jsonl").write_text("".join(lines[18:]))
    return folder


def train(place, folder, memory_count):
    """Return the bundle of a whole run, and its draws: (step, parameters, search, loader) as they were."""
    draws, draw = [], CorpusSearch.draw

    def noted(self, step, params, loader):
        before = jax.tree.map(np.asarray, params)
        draw(self, step, params, loader)
        draws.append((step, before, dict(self._drawn), self, loader))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusSearch, "draw", noted)
        bundle = run(config(place, memory_count), place / folder, StopSignal()).bundle
    return bundle, draws


@pytest.fixture(scope="module")
def trained(place, one_device):
    return train(place, "run", FIXED)


@pytest.fixture(scope="module")
def trained_in_proportion(place, one_device):
    return train(place, "proportional", PROPORTIONAL)


@pytest.mark.parametrize("name", ["trained", "trained_in_proportion"])
def test_candidates_are_the_best_of_the_corpus_and_the_positive_ones(name, request, mesh):
    bundle, draws = request.getfixturevalue(name)
    assert [step for step, *_ in draws] == [0, 2, 4]
    moved = 0
    for step, params, drawn, search, loader in draws:
        places = {int(p) for s in range(step, min(STEPS, step + EVERY)) for p in loader.plan.rows(s)}
        assert drawn.keys() == places
        model = dataclasses.replace(bundle.model, clara=dataclasses.replace(bundle.model.clara, lora_dropout=0.0))
        for number, (example, found) in enumerate((search._examples.given[p], drawn[p]) for p in sorted(places)):
            assert len(found) == CANDIDATES == len(set(found.tolist())) and list(found) == sorted(found)
            keys = [document_key(ids) for ids in search._documents]
            gold = {keys.index(document_key(example.documents[p])) for p in example.positives}
            assert gold <= set(found.tolist()) and max(found) < search._train
            if number:  # the scores of one question, over every document, by the function of the loss
                continue
            whole = dataclasses.replace(example, documents=tuple(search._documents[: search._train]))
            batch = collate([whole], plan_shapes([whole], bundle.tokenizer), bundle.tokenizer)
            with jax.set_mesh(bundle.mesh):
                scores, *_ = rank_documents(model, params, put_batch(batch, bundle.mesh), None)
            order = [n for n in np.argsort(-np.asarray(scores[0]), kind="stable").tolist() if n not in gold]
            assert set(found.tolist()) == gold | set(order[: CANDIDATES - len(gold)])
            moved += set(found.tolist()) != {keys.index(document_key(ids)) for ids in example.documents}
    assert moved, "others than the record's"


def test_batches_hold_what_was_drawn(trained):
    *_, (step, _, drawn, search, loader) = trained[1]
    batch, places = loader.batch(step), loader.plan.rows(step)
    assert batch.positives.shape == (4, CANDIDATES) and batch.document_valid.all() and batch.positives.any(1).all()
    for row, place in enumerate(places.tolist()):
        memories = search._memories([search._documents[number] for number in drawn[place]])
        np.testing.assert_array_equal(batch.documents.vectors[row], memories)
        for number in np.flatnonzero(batch.positives[row]):
            gold = search._examples.given[place]
            right = {document_key(gold.documents[p]) for p in gold.positives}
            assert document_key(search._documents[drawn[place][number]]) in right


def test_recall_is_measured_over_all_documents(place, trained):
    rows = [row for row in read_metrics(place / "run/metrics.jsonl") if "eval_corpus_recall@5" in row]
    assert [row["step"] for row in rows] == [0, STEPS]
    assert all(0 <= row["eval_corpus_recall@1"] <= row["eval_corpus_recall@5"] <= 1 for row in rows)
    search = trained[1][-1][3]
    assert len(search._documents) > search._train, "held-out documents are searched, too"


@pytest.mark.parametrize("done", [1, 2, 3])
def test_going_on_is_bit_for_bit(done, place, trained):
    """After a draw, between two, and just before one."""
    cut = place / f"cut{done}"
    shutil.copytree(place / "run", cut)
    for path in checkpoints(cut)[done:]:
        shutil.rmtree(path)
    log = json.loads((cut / "run.json").read_text())
    del log["finished"]
    (cut / "run.json").write_text(json.dumps(log))
    assert ("candidates" in load_arrays(checkpoints(cut)[-1])) == (done % EVERY != 0)
    again = run(config(place), cut, StopSignal()).bundle
    one, other = (flatten(bundle.params) for bundle in (again, trained[0]))
    for path, leaf in one.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other[path]), err_msg=path)
    for mine, whole in zip(checkpoints(cut), checkpoints(place / "run"), strict=True):
        pairs = [flatten(load_arrays(path)) for path in (mine, whole)]
        assert pairs[0].keys() == pairs[1].keys()
        assert all(np.array_equal(pairs[0][name], pairs[1][name]) for name in pairs[0]), mine.name


def test_what_is_refused(place, one_device, tmp_path):
    for fields in (dict(data=dict(memories="")), dict(data=dict(documents="text"))):
        with pytest.raises(ClaraError, match="end_to_end.topk.search_every is 2; only end_to_end with stored memories"):
            stage("end_to_end", topk=dict(search_every=2), **fields)
    with pytest.raises(ClaraError, match="only end_to_end with stored memories"):
        stage("retrieval", topk=dict(search_every=2), data=dict(memories="run"))
    for topk, words in (
        (dict(candidates=100), "candidates is 100, but the training records have .* different documents"),
        (dict(k=5), "has 4 documents, and a prompt of k 5"),
    ):
        with pytest.raises(ClaraError, match=words):
            run(config(place, **topk), tmp_path / next(iter(topk)), StopSignal())
        assert not (tmp_path / next(iter(topk))).exists()  # refused before the first stage
    lines = [json.loads(line) for line in (place / "end_to_end.jsonl").read_text().splitlines()]
    lines[3] = {key: value for key, value in lines[3].items() if not key.startswith("pos")}
    (tmp_path / "end_to_end.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(place / "held_out.jsonl", tmp_path)
    shutil.copytree(place / "base", tmp_path / "base")
    with pytest.raises(ClaraError, match=r"end_to_end.jsonl:4 marks no document as positive"):
        run(config(tmp_path), tmp_path / "other", StopSignal())


def test_a_run_of_before_the_field_goes_on_without(place, tmp_path):
    plain = config(place, search_every=None)
    written = to_json(plain)
    assert written["stages"][0]["topk"].pop("search_every") is None
    (tmp_path / "config.json").write_text(json.dumps(written))
    check_same_config(plain, tmp_path)
    assert from_json(written) == plain
