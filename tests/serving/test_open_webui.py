"""Requests of the shape that Open WebUI (0.12) sends to an OpenAI-compatible connection.

Its server asks for the models, streams the chat with functions that the model may call, and lets the same model write a
title, tags and follow-up questions in the background, not streamed, by prompts that it brings along.
"""

import json
from functools import partial

import httpx
import pytest

from clara_jax.serving.store import NO_TOOLS
from clara_jax.serving.text import text_app
from tests.serving.fakes import FakeBaseLM, serve
from tests.serving.test_server import DOCUMENTS

HEADERS = {
    "Authorization": "Bearer secret",
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "Ada%20Lovelace",
    "X-OpenWebUI-User-Id": "3f1c",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "77aa",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "a function of the chat program",
            "parameters": {"type": "object", "properties": {"days_ago": {"type": "integer"}}, "required": []},
        },
    }
    for name in ("get_current_timestamp", "ask_user")
]
FIRST = [
    {"role": "system", "content": "User Context:\n\nThe date is 2026-12-01."},
    {"role": "user", "content": "where is the cat"},
]
NEXT = [
    *FIRST,
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": [{"type": "text", "text": "and the dog?"}]},
]
TASK = """### Task:
Write a title for this chat.
### Output:
JSON format: { "title": "your title" }
### Chat History:
<chat_history>
USER: where is the cat
ASSISTANT: on the mat
</chat_history>"""


@pytest.fixture(scope="module")
def url():
    server = serve(key="secret")
    added = httpx.post(f"{server.url}/v1/documents", json={"documents": DOCUMENTS}, headers=HEADERS)
    added.raise_for_status()
    yield f"{server.url}/v1"
    server.end()


def streamed(url, messages, **fields):
    """Return the chunks of a streamed answer, read line by line as its middleware does."""
    body = {"stream": True, "model": "clara", "messages": messages, "stream_options": {"include_usage": True}}
    chunks = []
    with httpx.stream("POST", f"{url}/chat/completions", json=body | fields, headers=HEADERS, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert "text/event-stream" in response.headers["content-type"]
        for line in filter(None, response.iter_lines()):
            assert line.startswith("data: ")
            chunks.append(line.removeprefix("data: "))
    assert chunks.pop() == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def text_of(chunks):
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def test_the_connection_is_checked_by_its_models(url):
    listed = httpx.get(f"{url}/models", headers=HEADERS).json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["clara"]
    assert httpx.get(f"{url}/models", headers=HEADERS | {"Authorization": "Bearer None"}).status_code == 401


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "auto"}])
def test_a_streamed_conversation(url, tools):
    first = streamed(url, FIRST, **tools)
    assert text_of(first) == "answer to where is the cat ✓"
    assert first[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["object"] for chunk in first} == {"chat.completion.chunk"} and len({c["id"] for c in first}) == 1
    assert first[-1]["choices"] == [] and first[-1]["usage"]["completion_tokens"] == 28
    assert first[-2]["choices"][0]["finish_reason"] == "stop"
    assert first[0]["found"]["warnings"] == ([NO_TOOLS] if tools else [])
    following = streamed(url, NEXT, **tools, temperature=0.8, max_tokens=256)
    assert text_of(following) == "answer to and the dog? ✓"
    assert following[0]["found"]["searched"] == "where is the cat\nand the dog?" and following[0]["found"]["turns"] == 2


def test_a_browser_that_asks_directly_sends_further_fields(url):
    beside = {"metadata": {"chat_id": "77aa", "variables": {"{{USER_NAME}}": "Ada"}}, "session_id": "x", "files": None}
    assert text_of(streamed(url, FIRST, **beside)) == "answer to where is the cat ✓"


def test_titles_tags_and_follow_ups_are_questions_like_others(url):
    body = {"model": "clara", "messages": [{"role": "user", "content": TASK}], "stream": False, "max_tokens": 1000}
    answer = httpx.post(f"{url}/chat/completions", json=body, headers=HEADERS).json()
    assert len(answer["choices"]) == 1 and answer["choices"][0]["message"]["content"].startswith("answer to ### Task")


def test_what_is_refused_comes_as_an_error_that_it_shows(url):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]}]
    body = {"stream": True, "model": "clara", "messages": messages}
    response = httpx.post(f"{url}/chat/completions", json=body, headers=HEADERS)
    assert response.status_code == 422 and "json" in response.headers["content-type"]
    assert "no images, sounds or files" in response.json()["error"]["message"]


def test_a_base_alone_behind_it():
    server = serve(pipeline=FakeBaseLM(), app=partial(text_app, model="tiny"), key="secret")
    try:
        chunks = streamed(f"{server.url}/v1", NEXT[1:3] + [{"role": "user", "content": "more"}], tools=TOOLS)
        assert text_of(chunks) == "answer to where is the cat on the mat more"
    finally:
        server.end()
