"""The golden answers: questions over candidates, over given documents, and paraphrases; greedy tokens exactly."""

import json

import jax
import numpy as np
import pytest

from clara_jax import Clara
from clara_jax.model.sharding import make_mesh
from tests.locations import golden_folders

pytestmark = pytest.mark.usefixtures("optimized")
FOLDERS = golden_folders()


@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: folder.name if folder else "absent")
def test_golden_generation(folder):
    if folder is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    clara = Clara.load(folder / "clara_checkpoint", precision="float32", mesh=mesh, batch_size=4)
    calls = json.loads((folder / "generation.json").read_text())
    assert {call["method"] for call in calls} == set(METHODS)
    for call in calls:
        METHODS[call["method"]](clara, call)


def documents(call):
    return [group if isinstance(group, list) else [group] for group in call["documents"]]


def expected_tokens(clara, call):
    """The golden tokens, each answer up to its end token."""
    end = clara.bundle.tokenizer.eos_id
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in call["token_ids"]]


def check(clara, call, answers):
    for answer, tokens, text in zip(answers, expected_tokens(clara, call), call["text"], strict=True):
        assert list(answer.tokens) == tokens
        assert answer.text == whole(text)


def from_questions(clara, call):
    limit = {"k": call["top_k"], "max_new_tokens": call["max_new_tokens"], "long": "cut"}
    answers = clara.answer(call["questions"], documents(call), **limit)
    check(clara, call, answers)
    for answer, indices in zip(answers, call["topk_idx"], strict=True):
        assert [source.id for source in answer.sources] == [str(i) for i in indices]
        assert [source.rank for source in answer.sources] == list(range(1, len(indices) + 1))
        scores = [source.score for source in answer.sources]
        assert scores == sorted(scores, reverse=True) and np.all(np.abs(scores) <= 1)


def whole(text):
    """Without the U+FFFD that the released code writes for bytes of a character that is not there as a whole."""
    return text.replace("\N{REPLACEMENT CHARACTER}", "")


def from_text(clara, call):
    check(
        clara,
        call,
        clara.answer(call["questions"], documents(call), k=None, max_new_tokens=call["max_new_tokens"], long="cut"),
    )


def from_paraphrase(clara, call):
    texts = [group[0] for group in documents(call)]
    decode, seen = clara.bundle.tokenizer.decode, []
    clara.bundle.tokenizer.decode = lambda ids: seen.append(list(ids)) or decode(ids)
    try:
        ours = clara.paraphrase(texts, call["instruction"], max_new_tokens=call["max_new_tokens"], long="cut")
    finally:
        del clara.bundle.tokenizer.decode
    assert ours == [whole(text) for text in call["text"]]
    assert seen == expected_tokens(clara, call)


METHODS = {
    "generate_from_questions": from_questions,
    "generate_from_text": from_text,
    "generate_from_paraphrase": from_paraphrase,
}
