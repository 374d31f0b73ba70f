"""A batch that holds each distinct document once makes the steps that a batch with a document in each place makes."""

import jax
import numpy as np
import optax
import pytest

from clara_jax.input_pipeline.batches import DistinctSequences
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, compress_distinct
from clara_jax.model.sharding import put_batch
from clara_jax.training.step import init_state, make_train_step
from tests.training.test_step import OBJECTIVE, make_batch, make_model, make_params


def repeated_documents(model, seed):
    """A batch in which rows share documents, with absent places that hold something else."""
    batch = make_batch(model, seed=seed)
    ids, segment_ids = batch.documents.ids.copy(), batch.documents.segment_ids.copy()
    ids[2:, 0], segment_ids[2:, 0] = ids[:1, 0], segment_ids[:1, 0]
    ids[5, 1], segment_ids[5, 1] = ids[1, 0], segment_ids[1, 0] * batch.document_valid[5, 1]
    return batch.replace(documents=batch.documents.replace(ids=ids, segment_ids=segment_ids))


def each_once(batch, count):
    """The same, as `collate` makes it."""
    known = {}
    index = np.zeros(batch.document_valid.shape, np.int32)
    for place in zip(*np.nonzero(batch.document_valid), strict=True):
        key = (batch.documents.ids[place].tobytes(), batch.documents.segment_ids[place].tobytes())
        index[place] = known.setdefault(key, (len(known), *place))[0]
    assert len(known) < batch.document_valid.sum()
    first = batch.documents.replace(segment_ids=np.zeros_like(batch.documents.segment_ids))
    texts = jax.tree.map(lambda x: np.repeat(x[:1, 0], count, axis=0), first)
    for number, *place in known.values():
        texts.ids[number] = batch.documents.ids[tuple(place)]
        texts.segment_ids[number] = batch.documents.segment_ids[tuple(place)]
    return batch.replace(documents=DistinctSequences(texts, index))


def steps(stage, model, mesh, accumulate, batches):
    trained, frozen = split(make_params(model, mesh), STAGES[stage].trains)
    with jax.set_mesh(mesh):
        optimizer = optax.sgd(1.0, momentum=0.9)  # the updates are the gradients: nothing hides a difference
        state, metrics = init_state(trained, optimizer), []
        step = make_train_step(model, STAGES[stage], OBJECTIVE, optimizer, accumulate)
        key = jax.device_put(jax.random.key(0), jax.NamedSharding(mesh, jax.P()))
        for batch in batches:
            state, values = step(state, frozen, put_batch(batch, mesh), key)
            metrics.append(jax.device_get(values))
        assert step._cache_size() == 1
        return metrics, jax.device_get(state.trained)


@pytest.mark.parametrize(
    ("stage", "devices", "accumulate"),
    [
        ("end_to_end", "one", 1),
        ("end_to_end", "eight", 2),
        pytest.param("end_to_end", "one", 4, marks=pytest.mark.slow),
        pytest.param("retrieval", "one", 2, marks=pytest.mark.slow),
        ("retrieval", "eight", 1),
    ],
)
def test_steps_are_those_of_a_document_in_each_place(stage, devices, accumulate, mesh, mesh222):
    model, where = make_model(dropout=0.2), {"one": mesh, "eight": mesh222}[devices]
    plain = [repeated_documents(model, seed) for seed in range(2)]
    expected, after = steps(stage, model, where, accumulate, plain)
    found, ours = steps(stage, model, where, accumulate, [each_once(batch, 16) for batch in plain])
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() and one["grad_norm"] > 0
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for path, value in after.items():
        np.testing.assert_allclose(ours[path], value, rtol=0, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_document_stands_in_its_places(parts, mesh222):
    model = make_model()
    batch = each_once(repeated_documents(model, 0), 16)
    with jax.set_mesh(mesh222):
        compress = jax.jit(lambda params, batch: compress_distinct(model, params, batch, parts))
        done = jax.device_get(compress(make_params(model, mesh222), put_batch(batch, mesh222)))
    vectors, index = done.documents.vectors, batch.documents.index
    assert not vectors[~batch.document_valid].any() and vectors[batch.document_valid].any(axis=(1, 2)).all()
    for number in np.unique(index[batch.document_valid]):
        places = vectors[(index == number) & batch.document_valid]
        np.testing.assert_array_equal(places, np.broadcast_to(places[:1], places.shape))
    assert compress_distinct(model, None, done) is done
