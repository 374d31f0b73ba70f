"""Memories that are optimised for one document: they are read better than the compressor's, whatever the memory map."""

import dataclasses

import jax
import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.errors import ClaraError
from clara_jax.evaluation.baselines import Cramming, cram
from clara_jax.evaluation.systems import MemoryModel, Settings
from clara_jax.input_pipeline import prompts
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.generator import splice
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import CONDITIONS, CRAMMED
from tests import tiny

TEXTS = [tiny.document(0), " and ".join(tiny.document(i)[:12] for i in (1, 2)), "Oslo"]
CRAMMING = Cramming(60, 0.1)


@pytest.fixture(scope="module", params=["state", "affine"])
def clara(request, tmp_path_factory, mesh):
    base = tiny.write_base(tmp_path_factory.mktemp("base"))
    config = ClaraConfig(
        doc_max_length=24, compress_rate=4, lora_rank=4, different_mem_tokens=False, memory_map=request.param
    )
    bundle = opening.from_base(str(base), config, mesh, "float32")
    if request.param == "affine":
        rng = np.random.default_rng(1)
        tokens = bundle.params["tokens"]
        noisy = {name: leaf + 0.1 * rng.normal(size=64).astype("f") for name, leaf in tokens["map"].items()}
        bundle = dataclasses.replace(bundle, params=bundle.params | {"tokens": tokens | {"map": noisy}})
    return Clara(bundle.with_limits(1024, 0.0), batch_size=2)


def cross_entropy(clara, memories, text):
    """Of the text behind its memories, in nats a token, from logits of one pass."""
    bundle = clara.bundle
    model, encoded = bundle.model, bundle.tokenizer.encode_prompt(prompts.autoencode(text))
    ids, index = (np.array([part], np.int32) for part in (encoded.ids, encoded.memory_index))
    with jax.set_mesh(bundle.mesh):
        x = splice(model, bundle.params, ids, index, memories[None, None])
        states, _ = model.forward(bundle.params, "generator", x, np.ones(ids.shape, bool))
        logits = np.concatenate([np.asarray(part)[0] for part in model.logits(bundle.params, states)], axis=-1)
    likely = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -np.mean([likely[t - 1, label] for t, label in enumerate(encoded.labels) if label >= 0])


def test_the_text_is_likelier_and_each_is_optimised_alone(clara):
    started = clara.compress(TEXTS).array
    found = cram(clara.bundle, CRAMMING, TEXTS, started, batch_size=2)
    assert found.shape == started.shape and found.dtype == started.dtype
    for text, before, after in zip(TEXTS, started, found, strict=True):
        assert cross_entropy(clara, after, text) < 0.5 * cross_entropy(clara, before, text)
    alone = cram(clara.bundle, CRAMMING, TEXTS[1:2], started[1:2], batch_size=1)
    np.testing.assert_allclose(alone[0], found[1], atol=0.02 * np.abs(found).max())


def test_the_generator_answers_from_them(clara):
    def read(documents):
        return clara._encode("compressor", [list(map(int, ids)) for ids in documents])

    model = MemoryModel(clara, read, Settings(1, 3), CRAMMING)
    windows = Suite("w", False, tuple(Case(str(i), "autoencode", "", (text,), ()) for i, text in enumerate(TEXTS)))
    compressed, crammed = (model.predict(CONDITIONS[name], windows, windows.cases) for name in ("clara", "crammed"))
    assert sum(one.right_tokens for one in crammed) > sum(one.right_tokens for one in compressed)
    assert [one.window_tokens for one in crammed] == [one.window_tokens for one in compressed]
    asked = Suite("q", False, (Case("a", "question", "Where?", tuple(TEXTS[:2]), ("Oslo",)),))
    (given,) = model.given(CRAMMED, asked, asked.cases)
    np.testing.assert_allclose(given.request.memories, np.stack([model._crammed[text] for text in TEXTS[:2]]))
    assert given.read == (0, 1) and given.taken == (6, 6)


def test_nonsense_is_one_line():
    for steps, rate in ((0, 0.1), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ClaraError, match="at least one step, and a positive rate, are needed"):
            Cramming(steps, rate)
