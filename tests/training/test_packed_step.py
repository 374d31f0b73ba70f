"""Packing changes nothing but the time: losses, gradients and dropout are those of a row for each example."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from clara_jax.checkpoints import opening
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.packing import collate_packed, pack, plan_row, row_count
from clara_jax.input_pipeline.records import read_records
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective, counts
from clara_jax.model.sharding import put_batch
from clara_jax.training.step import example_keys, make_loss
from tests import tiny

OBJECTIVE = Objective()
SCP = STAGES["scp"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("packing")
    tiny.write_base(path / "base", chat_template=tiny.SPACED_TEMPLATE)
    return tiny.write_records(path, 16, 4)


def make_bundle(directory, mesh, dropout):
    clara = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, lora_dropout=dropout, max_length=256)
    bundle = opening.from_base(str(directory / "base"), clara, mesh, "float32")
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda x: jax.device_put(np.float32(rng.normal(0, 0.15, x.shape)), x.sharding), bundle.params["lora"]
    )
    return dataclasses.replace(bundle, params={**bundle.params, "lora": lora})


def make_batches(directory, bundle):
    """The same examples in a row each, and packed."""
    examples = encode_records(read_records(str(directory / "scp.jsonl"), "scp"), bundle.tokenizer, Encoding("scp", 1))
    memory = bundle.model.clara.memory_tokens
    row = plan_row(sizes_of(examples), memory, 128)
    rows = pack(sizes_of(examples), memory, row)
    assert 1 < len(rows) <= len(examples) / 2
    chosen = [[examples[place] for place in places] for places in rows]
    packed = collate_packed(chosen, row_count(len(rows), len(rows), 4), row, bundle.tokenizer)
    return collate(examples, plan_shapes(examples, bundle.tokenizer), bundle.tokenizer), packed


@functools.cache
def gradient_of(model):
    loss = make_loss(model, SCP, OBJECTIVE)

    def run(trained, frozen, batch, key):
        keys = example_keys(key, batch.example_ids)
        return jax.value_and_grad(loss, has_aux=True)(trained, frozen, batch, counts(batch), keys)

    return jax.jit(run)


def value_and_gradient(bundle, batch, seed=3):
    with jax.set_mesh(bundle.mesh):
        key = jax.device_put(jax.random.key(seed), jax.NamedSharding(bundle.mesh, jax.P()))
        placed = (*split(bundle.params, SCP.trains), put_batch(batch, bundle.mesh), key)
        return jax.device_get(gradient_of(bundle.model)(*placed))


@pytest.mark.parametrize("devices", ["one", pytest.param("eight", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_packed_rows_are_the_rows(directory, mesh, mesh222, devices, dropout):
    bundle = make_bundle(directory, {"one": mesh, "eight": mesh222}[devices], dropout)
    plain, packed = make_batches(directory, bundle)
    assert packed.tokens == plain.tokens
    ((loss, terms), gradient) = value_and_gradient(bundle, plain)
    ((packed_loss, packed_terms), packed_gradient) = value_and_gradient(bundle, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=0, atol=1e-5)
    assert packed_terms.keys() == terms.keys()
    for name in terms:
        np.testing.assert_allclose(packed_terms[name], terms[name], rtol=0, atol=1e-5, err_msg=name)
    for path, leaf in gradient.items():
        limit = 1e-5 * max(1, np.abs(leaf).max())
        np.testing.assert_allclose(packed_gradient[path], leaf, rtol=0, atol=limit, err_msg=path)
    if dropout:
        ((other, _), _) = value_and_gradient(bundle, packed, seed=4)
        assert abs(other - loss) > 1e-3, "the masks matter"


def test_no_example_sees_another(directory, mesh):
    """Another neighbour in the row changes neither the loss nor a gradient of what stays."""
    bundle = make_bundle(directory, mesh, 0.0)
    _, packed = make_batches(directory, bundle)
    labels = packed.prompt.labels.copy()
    first = np.take_along_axis(packed.prompt.segment_ids, packed.prompt.label_positions, axis=1) == 1
    labels[~first] = -100  # only each row's first example is learned
    valid = packed.document_valid & (np.arange(packed.document_valid.shape[1]) == 0)
    masked = packed.replace(prompt=packed.prompt.replace(labels=labels), document_valid=valid)

    def changed(rows):
        return rows.replace(ids=np.where(rows.segment_ids > 1, (rows.ids + 7) % 100, rows.ids))

    neighbours = masked.replace(documents=changed(masked.documents), prompt=changed(masked.prompt))
    ((loss, _), gradient) = value_and_gradient(bundle, masked)
    ((other, _), other_gradient) = value_and_gradient(bundle, neighbours)
    assert loss == other and loss > 0
    jax.tree.map(np.testing.assert_array_equal, gradient, other_gradient)
