"""Every number of the golden folders: what the released implementation computes, this one computes too."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.checkpoints import opening
from clara_jax.checkpoints.names import export_lora
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, memory_at_end
from clara_jax.method.compressor import alignment_loss
from clara_jax.method.estimators.methods import select
from clara_jax.method.generator import splice
from clara_jax.method.parameters import merge, split, unflatten
from clara_jax.method.stages import STAGES, Objective, counts, encode_documents, objective_value, rank_documents
from clara_jax.model.sharding import make_mesh
from clara_jax.model.transformer import join_logits
from tests.locations import golden_folders

pytestmark = pytest.mark.usefixtures("optimized")
FOLDERS = golden_folders()
RELATIVE = 2e-5  # of the largest: what float32 alone makes of logits of 8 and more in the released code
STAGE_FILES = {stage.reference_name: stage for stage in STAGES.values() if stage.reference_name}
ADAPTERS = {"encoder_adapter": "compressor", "decoder_adapter": "generator", "query_reasoner_adapter": "query_reasoner"}


@pytest.fixture(scope="module", params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "absent")
def golden(request):
    if request.param is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield request.param, opening.load(request.param / "clara_checkpoint", mesh, precision="float32")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text()), dict(np.load(folder / f"{name}.npz"))


def golden_batch(info, arrays, bundle):
    """The golden token ids as a batch; what the files leave out is derived."""
    rows = len(info["batch"])
    ids, mask = arrays["enc_input_ids"], arrays["enc_attention_mask"].astype(bool)
    prompt_ids = arrays["dec_input_ids"].astype(np.int32)
    attended = arrays["dec_attention_mask"].astype(np.int32)
    is_memory = np.isin(prompt_ids, bundle.tokenizer.memory_ids) & (attended == 1)
    positives = None
    if "pos_index" in info["batch"][0]:
        positives = np.zeros((rows, len(ids) // rows), bool)
        for row, record in enumerate(info["batch"]):
            positives[row, record["pos_index"]] = True

    def texts(ids, mask):
        ends = memory_at_end(ids.shape, bundle.tokenizer.memory_tokens)
        return Sequences(ids.astype(np.int32), mask.astype(np.int32), ends)

    query = None
    if "query_input_ids" in arrays:
        query = texts(arrays["query_input_ids"], arrays["query_attention_mask"])
    index = np.where(is_memory, np.cumsum(is_memory, axis=1) - 1, -1).astype(np.int32)
    labels = arrays["labels"].astype(np.int32)[:, 1:]
    places = np.tile(np.arange(1, labels.shape[1] + 1, dtype=np.int32), (rows, 1))
    return Batch(
        documents=jax.tree.map(lambda x: x.reshape(rows, -1, *x.shape[1:]), texts(ids, mask)),
        document_valid=np.ones((rows, len(ids) // rows), bool),
        query=query,
        prompt=PromptBatch(prompt_ids, attended, index, labels, places),
        positives=positives,
        example_ids=np.arange(rows, dtype=np.int32)[:, None],
    )


@pytest.mark.parametrize("reference", STAGE_FILES)
def test_golden_stage(golden, reference):
    folder, bundle = golden
    stage = STAGE_FILES[reference]
    info, arrays = read(folder, reference)
    batch = golden_batch(info, arrays, bundle)
    model = bundle.model
    objective = Objective(top_k=info["generation_top_k"], temperature=info.get("temperature", 0.02))
    trained, frozen = split(bundle.params, ("lora", "tokens/memory"))

    @jax.jit
    def loss(trained):
        params = merge(trained, frozen)
        return objective_value(stage, objective, stage.loss(model, params, batch, objective, None), counts(batch))

    (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    expected = (
        {"ce": "loss", "mse": "mse_loss"}
        if stage.name in ("scp", "instruct")
        else {next(iter(stage.weights(objective))): "loss"}
    )
    for name, field in expected.items():
        np.testing.assert_allclose(terms[name], arrays[field], atol=1e-5, rtol=1e-5, err_msg=name)
    check_gradients(model, unflatten(grads), arrays)
    check_outputs(model, bundle.params, batch, objective, arrays)


def check_gradients(model, grads, arrays):
    exported = {role: export_lora(model.config, grads["lora"][role]) for role in grads["lora"]}
    checked = 0
    for key, expected in arrays.items():
        kind, _, name = key.partition(":")
        if kind not in ("grad", "gnorm"):
            continue
        adapter = next(adapter for adapter in ADAPTERS if f".{adapter}." in name)
        plain = name.replace(f".{adapter}.", ".")
        ours = exported[ADAPTERS[adapter]][plain[plain.index("model.layers.") :]]
        if kind == "gnorm":
            np.testing.assert_allclose(np.linalg.norm(ours), expected, rtol=1e-3, atol=1e-7, err_msg=key)
        else:
            np.testing.assert_allclose(
                ours, expected, rtol=0, atol=1e-3 * max(np.abs(expected).max(), 1e-7), err_msg=key
            )
        checked += 1
    assert checked >= 14
    rows, expected = np.asarray(grads["tokens"]["memory"]), arrays["grad_mem_rows"]
    np.testing.assert_allclose(
        np.broadcast_to(rows, expected.shape), expected, rtol=0, atol=1e-3 * np.abs(expected).max()
    )


@partial(jax.jit, static_argnums=(0, 3))
def outputs(model, params, batch, objective, ranking):
    """What the golden files show of a forward pass."""
    rows, shown = len(batch.documents.ids), {}
    if ranking is None:
        encoded = encode_documents(model, params, batch.documents)
        selected = encoded.memory
        shown["memory"] = selected.reshape(-1, *selected.shape[2:])
        shown["mse_loss"] = jnp.mean(alignment_loss(encoded, batch.document_valid))
    else:
        shown["scores"], documents, query = rank_documents(model, params, batch, None)
        shown["query"] = query.reshape(rows, -1)
        selection, shown["topk_idx"] = select(
            shown["scores"], objective.top_k, objective.topk_method, objective.temperature
        )
        selected = jnp.einsum("BKD,BDME->BKME", selection, documents)
    x = splice(model, params, batch.prompt.ids, batch.prompt.memory_index, selected)
    states, _ = model.forward(params, "generator", x, batch.prompt.segment_ids)
    return shown | {"logits": join_logits(*model.logits(params, states))}


def check_outputs(model, params, batch, objective, arrays):
    ours = outputs(model, params, batch, objective, True if "scores" in arrays else None)
    checked = [name for name in ours if name in arrays]
    assert {"scores", "query", "topk_idx"} <= set(checked) or {"memory", "mse_loss", "logits"} <= set(checked)
    for name in checked:
        value, expected = np.asarray(ours[name]), arrays[name]
        assert value.shape == expected.shape, name
        if name == "topk_idx":
            np.testing.assert_array_equal(value, expected)
            continue
        if name == "logits":  # what stands at padding is nobody's business
            attended = batch.prompt.segment_ids == 1
            value, expected = value[attended], expected[attended]
        allowed = 1e-5 if name == "mse_loss" else max(1e-4, RELATIVE * np.abs(expected).max())
        np.testing.assert_allclose(value, expected, rtol=0, atol=allowed, err_msg=name)
