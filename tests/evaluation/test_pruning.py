"""Token pruning: what is kept, and the surprisals it goes by against a naive computation."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.checkpoints import opening
from clara_jax.evaluation.baselines import pruned, surprisals, truncated
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.sharding import make_mesh
from tests import tiny
from tests.data import tiny_tokenizer


def test_the_least_expected_tokens_are_kept_in_their_order():
    values = np.array([0.1, 5.0, 0.2, 4.0, 4.0, 0.3, 1.0, 2.0, 0.0])
    assert pruned(list("abcdefghi"), values, 4) == ["b", "d", "e"]  # ⌈9 / 4⌉, of equal ones the earlier
    assert pruned(list("ab"), values[:2], 4) == ["b"]
    assert pruned([], values[:0], 4) == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    base = tiny.write_base(tmp_path_factory.mktemp("base"))
    return opening.from_base(
        str(base), ClaraConfig(doc_max_length=32, compress_rate=8), make_mesh(devices=jax.devices()[:1]), "float32"
    )


def test_surprisals_are_the_bases_own(bundle):
    ids = [tokens[2:-1] for tokens in bundle.tokenizer.document_tokens([tiny.document(i) for i in range(3)])]
    ids[1] = ids[1][:5]  # of other lengths
    found = surprisals(bundle, ids, 2)
    model, params = bundle.model, bundle.params

    @jax.jit
    def logits(params, row, mask):
        return model.logits(params, model.forward(params, None, model.embed(params, row), mask)[0])

    for tokens, values in zip(ids, found, strict=True):
        assert values.shape == (len(tokens),)
        row = np.array([[bundle.tokenizer.bos_id, *tokens]], np.int32)
        with jax.set_mesh(bundle.mesh):
            base, added = logits(params, row, np.ones_like(row, bool))
        log_p = jax.nn.log_softmax(np.concatenate([base, added], -1)[0], axis=-1)
        np.testing.assert_allclose(values, [-log_p[t, token] for t, token in enumerate(tokens)], rtol=1e-4, atol=1e-4)


def test_no_texts(bundle):
    assert surprisals(bundle, [], 2) == []


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=40), st.integers(1, 6))
def test_characters_are_never_cut_in_two(text, rate):
    tokenizer = ClaraTokenizer(tiny_tokenizer(), 64, 4)
    ids = tokenizer._encode([text])[0]
    characters = tokenizer.whole_characters(ids)
    values = np.random.default_rng(0).random(len(ids))
    for kept in (pruned(ids, values, rate, characters), truncated(ids, rate, characters)):
        shown = tokenizer._tokenizer.decode(kept)
        assert "\ufffd" not in shown and len(kept) <= max(rate, -(-len(ids) // rate))
        remaining = iter(text)
        assert all(character in remaining for character in shown)  # in their order, and none but the text's
