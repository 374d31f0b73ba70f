"""Reranking in the form of Cohere and Jina, embeddings in that of OpenAI, and what a server says of its defaults."""

import httpx
import numpy as np
import openai
import pytest

from tests.serving.fakes import FakePipeline, serve

QUERY, DOCUMENTS = "a b c", ["x", {"text": "a b", "title": "t"}, "b"]


@pytest.fixture(scope="module")
def served():
    server = serve(FakePipeline(pause=0.01))
    server.pipeline.stored |= {f"d{i}": f"word {i}" for i in range(8)}
    yield server
    server.end()


def post(served, path, **body):
    return httpx.post(f"{served.url}/v1/{path}", json=body)


def test_documents_are_reranked_best_first(served):
    body = post(served, "rerank", query=QUERY, documents=DOCUMENTS, model="rerank-v3.5").json()
    assert [(one["index"], one["relevance_score"]) for one in body["results"]] == [(1, 2.0), (2, 1.0), (0, 0.0)]
    assert all("document" not in one for one in body["results"]) and body["id"] and body["model"] == "clara"
    assert body["usage"]["total_tokens"] == body["meta"]["tokens"]["input_tokens"] == 3 + 1 + 2 + 1
    body = post(served, "rerank", query=QUERY, documents=DOCUMENTS, top_n=1, return_documents=True).json()
    assert body["results"] == [{"index": 1, "relevance_score": 2.0, "document": {"text": "a b"}}]
    assert len(post(served, "rerank", query=QUERY, documents=DOCUMENTS, top_n=99).json()["results"]) == 3


def test_embeddings_are_read_by_the_official_client(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x")
    texts = ["x" * n for n in range(1, 41)]
    served.pipeline.embedded = []
    for encoding in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
        found = client.embeddings.create(model="any", input=texts, **encoding)
        np.testing.assert_array_equal([one.embedding for one in found.data], [[n, 0.0] for n in range(1, 41)])
        assert [one.index for one in found.data] == list(range(40)) and found.usage.total_tokens == 40
    assert max(served.pipeline.embedded) <= 16, "in small groups, between which answers go on"
    alone = post(served, "embeddings", input="four", input_type="query").json()
    assert alone["data"] == [{"object": "embedding", "index": 0, "embedding": [4.0, 1.0]}]
    as_text = post(served, "embeddings", input="four", encoding_format="base64").json()["data"][0]["embedding"]
    assert isinstance(as_text, str)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("rerank", {"query": "x", "documents": [5]}, 422, "documents.0: 5 is not a text or an object"),
        ("rerank", {"query": "x", "documents": [{"txt": "y"}]}, 422, "documents.0.text: is missing"),
        ("rerank", {"documents": ["y"]}, 422, "query: is missing"),
        ("rerank", {"query": "x", "documents": ["y"], "top_n": 0}, 422, "top_n: 0 must be at least 1"),
        ("rerank", {"query": "x", "documents": ["y"] * 101}, 422, "has 101 entries; there may be 100"),
        (
            "rerank",
            {"query": "x", "documents": ["y"], "return_documents": "yes"},
            422,
            'return_documents: "yes" is not true or false',
        ),
        ("embeddings", {"input": []}, 422, "input: [] has 0 entries; at least 1 are needed"),
        ("embeddings", {"input": [[1, 2]]}, 422, "input.0: [1, 2] is not a text"),
        ("embeddings", {"input": ["a", "  "]}, 400, "input[1]: ' ' is no text"),
        (
            "embeddings",
            {"input": "x", "encoding_format": "int8"},
            422,
            """encoding_format: "int8" must be 'float' or""",
        ),
        ("embeddings", {"input": "x", "dimensions": 8}, 422, "dimensions: vectors are as long as"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "k": "five"},
            422,
            'k: "five" is not a whole',
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": 5}]},
            422,
            "messages.0.content: 5 is not a text or a list",
        ),
        ("chat/completions", {"messages": [{"role": "boss", "content": "x"}]}, 422, 'messages.0.role: "boss" must be'),
        ("search", {"question": "x", "how": "magic"}, 422, """how: "magic" must be 'memory', 'words' or 'both'"""),
        ("search", ["x"], 422, "the body: "),
        ("nothing", {}, 404, "POST /v1/nothing: there is no such route"),
    ],
)
def test_mistakes_name_the_field_and_what_was_sent(served, path, body, status, said):
    response = httpx.post(f"{served.url}/v1/{path}", json=body)
    message = response.json()["error"]["message"]
    assert response.status_code == status and message.startswith(said.partition("has")[0]) and said in message, message
    assert "\n" not in message and "Input should" not in message


def test_a_body_that_is_no_json_says_where(served):
    response = httpx.post(
        f"{served.url}/v1/search", content=b'{"question": "x",}', headers={"content-type": "application/json"}
    )
    assert response.status_code == 422 and response.json()["error"]["message"].startswith("the body is not JSON: ")
    listed = httpx.get(f"{served.url}/v1/documents", params={"limit": "many"})
    assert listed.json()["error"]["message"] == 'limit: "many" is not a whole number'


def test_what_is_usual_is_told_and_more_is_warned_of(served):
    health = httpx.get(f"{served.url}/health").json()
    assert (health["k"], health["how"]) == (5, "memory")
    asked = {"messages": [{"role": "user", "content": "word"}]}
    for k, warnings in ((None, []), (5, []), (6, ["k: 6 are many"])):
        assert post(served, "chat/completions", **asked, k=k).json()["found"]["warnings"] == warnings


def test_documents_that_cannot_be_read_are_warned_of(served):
    def added(text):
        return post(served, "documents", documents=[{"id": "new", "text": text}]).json()["warnings"]

    assert added("plain") == [] and added("αβγ") == ["Greek"]
