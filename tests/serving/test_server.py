"""The server around a pipeline without a model: what clients get, however they behave."""

import asyncio
import json
import socket
import threading
import time

import httpx
import openai
import pytest

from clara_jax.retrieval.table import StoreError
from clara_jax.serving import chat as chats
from clara_jax.serving import schema
from tests.serving.fakes import FakePipeline, serve

DOCUMENTS = [
    {"id": "notes/a.md", "text": "the cat sat on the mat"},
    {"id": "../../etc/passwd", "text": "a dog barked at the moon"},
]


@pytest.fixture
def served():
    servers = []

    def start(**options):
        servers.append(serve(**options))
        httpx.post(f"{servers[-1].url}/v1/documents", json={"documents": DOCUMENTS}, headers=KEY).raise_for_status()
        return servers[-1]

    yield start
    for one in servers:
        one.end()


KEY = {"authorization": "Bearer secret"}


def chat(question="where is the cat", **fields):
    return {"messages": [{"role": "user", "content": question}], **fields}


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def test_an_answer_with_its_sources(served):
    url = served().url
    response = httpx.post(f"{url}/v1/chat/completions", json=chat(k=1))
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["object"] == "chat.completion" and body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "answer to where is the cat ✓"}
    assert [source["document"] for source in body["sources"]] == ["notes/a.md"]
    assert len(body["found"]["candidates"]) == 2 and body["found"]["compress_ratio"] == 16
    assert body["usage"] == {"prompt_tokens": 28, "completion_tokens": 28, "total_tokens": 56}
    short = httpx.post(f"{url}/v1/chat/completions", json=chat(max_tokens=6)).json()
    assert short["choices"][0]["message"]["content"] == "answer" and short["choices"][0]["finish_reason"] == "length"


def test_parts_and_the_last_question_of_a_chat(served):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "wh"}, {"type": "text", "text": "o"}]},
    ]
    body = httpx.post(f"{served().url}/v1/chat/completions", json={"messages": messages, "n": 1, "user": "x"}).json()
    assert body["choices"][0]["message"]["content"] == "answer to who ✓"
    # Which is searched behind what the user said before, and answered from all that was said; and so it says.
    assert body["found"]["searched"] == "no\nwho" and body["found"]["searched_as"] == "concatenated"
    assert body["found"]["turns"] == 2
    body = httpx.post(f"{served().url}/v1/chat/completions", json=chat("who")).json()
    assert body["found"]["searched_as"] == "question" and body["found"]["turns"] == 0


def test_an_upgrade_to_a_websocket_is_an_ordinary_request(served):
    """Also where the websockets package is installed, which uvicorn would use."""
    url = served().url
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    key = {"sec-websocket-key": "MDEyMzQ1Njc4OWFiY2RlZg=="}
    for headers in (upgrade, upgrade | key, upgrade | {"content-length": "0"}):
        assert httpx.get(f"{url}/health", headers=headers, timeout=20).json()["status"] == "ok"


def test_a_stream_is_the_answer_in_pieces(served):
    request = chat(stream=True, stream_options={"include_usage": True})
    response = httpx.post(f"{served().url}/v1/chat/completions", json=request)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, usage = events(response)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert first["found"]["sources"][0]["document"] == "notes/a.md"
    texts = [piece["choices"][0]["delta"]["content"] for piece in middle]
    assert "".join(texts) == "answer to where is the cat ✓" and len(texts) > 3
    assert last["choices"][0]["finish_reason"] == "stop" and "total" in last["found"]["milliseconds"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 28


@pytest.mark.parametrize("stream", [False, True])
def test_it_abstains_in_words(served, stream):
    response = httpx.post(f"{served().url}/v1/chat/completions", json=chat(abstain_below=0.9, stream=stream))
    body = events(response)[-1] if stream else response.json()
    assert body["found"]["abstained"] and body["choices"][0]["finish_reason"] == "stop"
    assert "do not seem to answer" in response.text


def test_many_clients_are_answered_together(served):
    server = served(pipeline=FakePipeline(rows=4, pause=0.02), queue=40)

    async def all_of_them():
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [client.post(f"{server.url}/v1/chat/completions", json=chat(f"question {i}")) for i in range(20)]
            return await asyncio.gather(*asked)

    for number, response in enumerate(asyncio.run(all_of_them())):
        assert response.json()["choices"][0]["message"]["content"] == f"answer to question {number} ✓"
    assert server.pipeline.engine.together == 4 and server.worker.inside == 0


def test_a_full_queue_says_so_and_recovers(served):
    server = served(pipeline=FakePipeline(rows=1, pause=0.05), queue=2)

    async def all_of_them():
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [client.post(f"{server.url}/v1/chat/completions", json=chat()) for _ in range(10)]
            return await asyncio.gather(*asked)

    responses = asyncio.run(all_of_them())
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) >= 3 and statuses.count(429) >= 3 and set(statuses) == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1" and refused.json()["error"]["type"] == "rate_limit_error"
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


def test_documents_come_and_go(served):
    url = served().url
    listed = httpx.get(f"{url}/v1/documents", params={"limit": 1}).json()
    assert listed["total"] == 2 and [entry["id"] for entry in listed["documents"]] == ["../../etc/passwd"]
    added = httpx.post(f"{url}/v1/documents", json={"documents": [{"id": "b", "text": "x\r\ny"}]}).json()
    assert added == {"documents": 1, "compressed": 1, "unchanged": 0, "removed": 0, "warnings": []}
    for name in ("b", "..%2F..%2Fetc%2Fpasswd", "notes/a.md"):
        assert httpx.delete(f"{url}/v1/documents/{name}").status_code == 200
        gone = httpx.delete(f"{url}/v1/documents/{name}")
        assert gone.status_code == 404 and "there is no document" in gone.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/documents").json() == {"documents": [], "total": 0}
    # Without documents nothing is found, and that is said.
    assert httpx.post(f"{url}/v1/chat/completions", json=chat()).json()["found"]["abstained"]


def test_answers_go_on_while_documents_are_compressed(served):
    server = served(pipeline=FakePipeline(rows=2, pause=0.01))
    server.pipeline.pause_add = 0.1
    many = {"documents": [{"id": str(i), "text": "t"} for i in range(160)]}
    adding = threading.Thread(
        target=httpx.post, args=(f"{server.url}/v1/documents",), kwargs={"json": many, "timeout": 30}
    )
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat(stream=True), timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        adding.start()
        rest = [line for line in lines if line]
        in_work = adding.is_alive()
    adding.join()
    assert rest[-1] == "data: [DONE]" and in_work and len(server.pipeline.stored) == 162


def test_search_and_rank(served):
    url = served().url
    hits = httpx.post(f"{url}/v1/search", json={"question": "the dog", "k": 1}).json()["hits"]
    assert [hit["document"] for hit in hits] == ["../../etc/passwd"]
    ranked = httpx.post(f"{url}/v1/rank", json={"question": "a b c", "documents": ["x", "a b", "b"]}).json()
    assert [one["index"] for one in ranked["results"]] == [1, 2, 0]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", b"{", 422, "JSON"),
        ("chat/completions", b"[]", 422, ""),
        ("chat/completions", b"\xff\xfe", 422, ""),
        ("chat/completions", {"messages": []}, 422, "messages"),
        ("chat/completions", {"messages": "hello"}, 422, "messages"),
        ("chat/completions", chat(k="many"), 422, "k:"),
        ("chat/completions", chat(k=0), 422, "k:"),
        ("chat/completions", chat(temperature=-1), 422, "temperature"),
        ("chat/completions", chat(top_p=0), 422, "top_p"),
        ("chat/completions", chat(max_tokens=10**9), 422, "max_tokens"),
        ("chat/completions", chat(n=2), 422, "n:"),
        ("chat/completions", chat(response_format={"type": "json_object"}), 422, "response_format.type"),
        ("chat/completions", chat(tools="search"), 422, "tools:"),
        ("chat/completions", chat(" "), 400, "the last one of the user"),
        ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400, "the last one of the user"),
        ("chat/completions", chat(where="1; DROP TABLE x"), 400, "where"),
        ("search", {"question": ""}, 422, "question"),
        ("search", {"question": "  "}, 400, "empty"),
        ("rank", {"question": "x", "documents": []}, 422, "documents"),
        ("documents", {"documents": [{"id": "a\x00b", "text": "x"}]}, 400, "control character"),
        ("documents", {"documents": [{"id": "", "text": "x"}]}, 422, "id"),
        ("documents", {"documents": [{"id": "x", "text": " "}]}, 400, "no text"),
        ("documents", b'{"documents": [{"id": "\\ud800", "text": "x"}]}', 400, "half of a surrogate pair"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', 400, "half of a surrogate"),
        ("chat/completions", b'{"messages": [], "\\udc00": 1}', 400, "half of a surrogate"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "where": "\\uD83D"}', 400, "half"),
        ("search", b'{"question": "\\ud83d\\ud83d"}', 400, "half of a surrogate"),
        ("rank", b'{"question": "x", "documents": ["\\udfff"]}', 400, "half of a surrogate"),
        ("search", b"[" * 100_000, 400, ""),
        ("search", b'{"question": "x", "k": ' + b"9" * 5000 + b"}", 400, ""),
        ("chat/completions", chat(tool_choice="required"), 422, "no tools are called here"),
        ("chat/completions", chat(tool_choice={"type": "function", "function": {"name": "f"}}), 422, "no tools"),
        ("chat/completions", chat(functions={"name": "f"}), 422, "no functions are called here"),
        ("chat/completions", chat(function_call={"name": "f"}), 422, "no functions are called here"),
        ("chat/completions", chat(logprobs=True), 422, "log-probabilities are not reported here"),
        ("chat/completions", chat(top_logprobs=3), 422, "log-probabilities are not reported here"),
        ("chat/completions", chat(logit_bias={"5": 100}), 422, "no bias"),
        ("chat/completions", chat(presence_penalty=0.5), 422, "no penalties"),
        ("chat/completions", chat(modalities=["text", "audio"]), 422, "answers are text"),
        ("chat/completions", chat(stop=[""]), 422, "stop"),
        ("chat/completions", chat(web_search_options={}), 422, "web_search_options: it would change the answer"),
        ("chat/completions", chat(ignore_eos=True), 422, "ignore_eos: it would change the answer"),
        ("chat/completions", chat(top_k=5), 422, "top_k: it would change the answer"),
        ("chat/completions", chat(guided_choice=["a", "b"]), 422, "guided_choice: it would change the answer"),
        ("chat/completions", chat(stop=["a", "b", "c", "d", "e"]), 422, "stop"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            422,
            "no images",
        ),
    ],
)
def test_mistakes_are_told_in_words(served_once, path, body, status, said):
    sent = (
        {"content": body, "headers": {"content-type": "application/json"}}
        if isinstance(body, bytes)
        else {"json": body}
    )
    response = httpx.post(f"{served_once.url}/v1/{path}", **sent)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"] and set(response.json()) == {"error"}


@pytest.fixture(scope="module")
def served_once():
    server = serve()
    httpx.post(f"{server.url}/v1/documents", json={"documents": DOCUMENTS}).raise_for_status()
    yield server
    server.end()


FIELDS = sorted(schema.StoreChatRequest.model_fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("cat", "answer to where is the "),
        (["nowhere", " is"], "answer to where"),
        ("the cat ✓!", "answer to where is the cat ✓"),  # which begins and does not come
        (["✓"], "answer to where is the cat "),
        ("a", ""),
        (None, "answer to where is the cat ✓"),
    ],
)
def test_an_answer_ends_before_the_first_of_the_endings(served_once, stop, said, stream):
    response = httpx.post(f"{served_once.url}/v1/chat/completions", json=chat(stop=stop, stream=stream))
    assert response.status_code == 200, response.text
    if stream:
        _, *middle, last = events(response)
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in middle) == said
        assert last["choices"][0]["finish_reason"] == "stop"
    else:
        assert response.json()["choices"][0]["message"]["content"] == said
        assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_null_is_absent(served_once):
    url = f"{served_once.url}/v1/chat/completions"
    expected = httpx.post(url, json=chat()).json()["choices"]
    optional = {name: None for name in FIELDS if name != "messages"}
    request = chat(**optional | {"stream_options": {"include_usage": None}})
    assert httpx.post(url, json=request).json()["choices"] == expected
    for name in optional:
        assert httpx.post(url, json=chat(**{name: None})).json()["choices"] == expected, name
    harmless = {"top_k": -1, "ignore_eos": False, "repetition_penalty": 1.0, "echo": None, "stop_token_ids": []}
    assert httpx.post(url, json=chat(**harmless, user="me")).json()["choices"] == expected
    assert "messages" in httpx.post(url, json=chat(messages=None)).json()["error"]["message"]
    documents = [{"id": "b", "text": "x", "title": None, "source": None}]
    assert httpx.post(f"{served_once.url}/v1/documents", json={"documents": documents}).status_code == 200
    found = httpx.post(f"{served_once.url}/v1/search", json={"question": "x", "k": None, "how": None, "where": None})
    assert found.json()["hits"]
    assert httpx.delete(f"{served_once.url}/v1/documents/b").status_code == 200


def test_a_whole_surrogate_pair_is_a_character(served_once):
    body = rb'{"messages": [{"role": "user", "content": "\ud83d\ude00"}]}'
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{served_once.url}/v1/chat/completions", content=body, headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == "answer to 😀 ✓"


def test_openais_own_client(served_once):
    with openai.OpenAI(base_url=f"{served_once.url}/v1", api_key="any") as client:
        assert client.models.retrieve("clara").id == client.models.list().data[0].id == "clara"
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt/4'"):
            client.models.retrieve("gpt/4")
        request = {"model": "clara", "messages": chat("where")["messages"], "stop": "where", "temperature": None}
        assert client.chat.completions.create(**request).choices[0].message.content == "answer to "
        pieces = client.chat.completions.create(**request, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "answer to "
        with pytest.raises(openai.UnprocessableEntityError, match="no tools"):
            client.chat.completions.create(**request, tool_choice="required")


def asks_first(url, origin, key=None):
    headers = {"origin": origin, "access-control-request-method": "POST"}
    headers |= {"access-control-request-headers": "authorization,content-type"}
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_pages_of_allowed_origins_may_ask_and_read(served):
    hosts = ("127.0.0.1", "localhost", "::1")
    for limits, origin, allowed in (
        ({"hosts": hosts}, "http://localhost:1234", True),
        ({"hosts": hosts}, "https://evil.example", False),
        ({"key": "secret"}, "https://mine.example", True),
        ({"key": "secret", "hosts": hosts}, "https://mine.example", False),
        ({}, "http://127.0.0.1:1234", True),
        ({}, "https://evil.example", False),
    ):
        url = served(**limits).url
        first = asks_first(url, origin)
        assert (first.status_code == 204) == allowed, (limits, origin, first.text)
        assert first.headers.get("access-control-allow-origin") == (origin if allowed else None)
        if allowed:
            assert first.headers["access-control-allow-headers"] == "authorization,content-type"
        read = httpx.post(f"{url}/v1/chat/completions", json=chat(), headers=KEY | {"origin": origin})
        assert read.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert httpx.options(f"{url}/v1/chat/completions").status_code in (401, 405)


def test_unknown_paths_methods_and_models(served_once):
    assert "GET /v2: there is no such route" in httpx.get(f"{served_once.url}/v2").json()["error"]["message"]
    assert httpx.put(f"{served_once.url}/v1/search").status_code == 405
    assert httpx.get(f"{served_once.url}/v1/models").json()["data"][0]["id"] == "clara"
    page = httpx.get(served_once.url)
    assert "<title>" in page.text and "default-src 'none'" in page.headers["content-security-policy"]


def test_large_requests_are_refused_before_they_are_read(served):
    server = served(body=2000)
    large = chat("x" * 3000)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=large).status_code == 413
    chunked = (json.dumps(large)[i : i + 100].encode() for i in range(0, 4000, 100))
    assert httpx.post(f"{server.url}/v1/chat/completions", content=chunked).status_code == 413


def test_slow_requests_are_ended(served):
    server = served(body_seconds=0.3)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        client.settimeout(5)
        assert client.recv(1000).startswith(b"HTTP/1.1 408")
    assert server.worker.inside == 0


def test_who_does_not_read_frees_its_place(served, monkeypatch):
    """A stream to a client that keeps the connection and takes nothing from it."""
    monkeypatch.setattr(chats, "_LAST_WORDS", 0.2)
    server = served(request_seconds=1)
    server.pipeline.stored["large"] = "where is the cat " * 250_000
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(chat(stream=True)).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", "", ""]
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall("\r\n".join(head).encode() + body)
        wait_until(lambda: server.worker.inside == 1)
        wait_until(lambda: server.worker.inside == 0)


def test_a_key_is_needed_where_there_is_one(served):
    url = served(key="secret").url
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"authorization": "é"}):
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        response = httpx.post(f"{url}/v1/search", json={"question": "x"}, headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.post(f"{url}/v1/search", json={"question": "x"}, headers=KEY).status_code == 200
    assert httpx.get(url).status_code == 200 and httpx.get(f"{url}/health").json()["needs_key"]


def test_other_names_of_the_host_are_refused(served):
    url = served(hosts=("127.0.0.1", "localhost", "::1")).url
    for host, status in (("evil.example", 400), ("localhost:80", 200), ("[::1]:8000", 200), ("[", 400), ("", 400)):
        assert httpx.get(f"{url}/health", headers={"host": host}).status_code == status, host


def test_pages_of_other_origins_are_refused(served):
    url = served(hosts=("127.0.0.1", "localhost", "::1")).url
    for origin, status in (
        (url, 200), ("http://localhost:1234", 200), ("https://evil.example", 403), ("null", 403), ("http://[", 403)
    ):  # fmt: skip
        assert httpx.get(f"{url}/health", headers={"origin": origin}).status_code == status, origin
    assert httpx.get(f"{served().url}/health", headers={"origin": "https://mine.example"}).status_code == 200


def test_too_long_a_work_is_ended(served):
    server = served(pipeline=FakePipeline(rows=1, pause=0.2), request_seconds=0.5)
    response = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
    assert response.status_code == 504 and response.json()["error"]["type"] == "timeout_error"
    assert "--request-seconds" in response.json()["error"]["message"]  # and what else it may be: the server compiles
    *_, last = events(httpx.post(f"{server.url}/v1/chat/completions", json=chat(stream=True)))
    assert last["error"]["type"] == "timeout_error"
    wait_until(lambda: server.worker.inside == 0 and not server.pipeline.engine.running)
    assert {handle.result.ended for handle in server.pipeline.engine.ended} == {"cancelled"}


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_is_not_answered_any_more(served, stream):
    server = served(pipeline=FakePipeline(rows=1, pause=0.05))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/chat/completions", json=chat("q" * 500, stream=stream, max_tokens=4000), timeout=0.04
        )
    wait_until(lambda: server.pipeline.engine.ended)
    assert server.pipeline.engine.ended[0].result.ended == "cancelled"
    wait_until(lambda: server.worker.inside == 0)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat(), timeout=30).status_code == 200


def test_a_failure_is_one_answer_and_not_the_end(served):
    server = served()
    server.pipeline.rank = lambda *_: 1 / 0
    response = httpx.post(f"{server.url}/v1/rank", json={"question": "x", "documents": ["y"]})
    assert response.status_code == 500 and "ZeroDivision" not in response.text
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


def test_until_first_programs_are_there_it_says_so_and_requests_wait():
    ready, answers = threading.Event(), []
    server = serve(prepare=ready.wait)

    def ask():
        answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=chat(), timeout=60))

    try:
        health = httpx.get(f"{server.url}/health", timeout=60)
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(0.2)
        assert not answers
        ready.set()
        asking.join(60)
        assert answers[0].status_code == 200
        health = httpx.get(f"{server.url}/health", timeout=60)
        assert (health.status_code, health.json()["status"]) == (200, "ok")
    finally:
        ready.set()
        server.end()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_cannot_get_ready_says_that_it_failed():
    server = serve(prepare=lambda: 1 / 0)
    try:
        assert server.worker.join(60)
        health = httpx.get(f"{server.url}/health", timeout=60)
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat(), timeout=60).status_code == 503
    finally:
        server.end()


def test_what_is_under_way_is_finished_and_what_comes_is_refused(served):
    server = served(pipeline=FakePipeline(rows=1, pause=0.05))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat(stream=True), timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        server.worker.stop()
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
        assert refused.status_code == 503 and refused.json()["error"]["message"] == "the server is stopping"
        assert httpx.get(f"{server.url}/health").status_code == 503
        assert [line for line in lines if line][-1] == "data: [DONE]"
    with httpx.Client() as client:
        assert client.post(f"{server.url}/v1/rank", json={"question": "x", "documents": ["y"]}).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_finished_is_told_so(served, stream):
    server = served(pipeline=FakePipeline(rows=1, pause=0.2))
    found = {}

    def ask():
        found["response"] = httpx.post(f"{server.url}/v1/chat/completions", json=chat(stream=stream), timeout=30)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.pipeline.engine.running)
    server.worker.stop()
    server.worker.end()
    thread.join(10)
    if stream:
        assert events(found["response"])[-1]["error"]["message"] == "the server is stopping"
    else:
        assert found["response"].status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_for_a_worker_that_is_stuck_is_told_at_once(served, stream):
    """As inside XLA, whose compiling nothing can interrupt; and what waits behind it does not begin."""
    server = served(pipeline=FakePipeline(rows=1, pause=0.0), queue=50)
    stuck, free = threading.Event(), threading.Event()
    step = server.pipeline.engine.step

    def compiling():
        stuck.set()
        free.wait(20)
        return step()

    server.pipeline.engine.step = compiling
    found = []

    def ask():
        response = httpx.post(f"{server.url}/v1/chat/completions", json=chat(stream=stream), timeout=30)
        found.append((response, time.monotonic()))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    assert stuck.wait(10)
    wait_until(lambda: server.worker.inside == 12)
    asked = len(server.pipeline.engine.waiting)
    server.worker.stop()
    began = time.monotonic()
    server.worker.end()
    for thread in threads:
        thread.join(10)
    assert not server.worker.join(0.01)
    assert len(found) == 12 and max(at for _, at in found) - began < 5
    for response, _ in found:
        if stream and response.status_code == 200:
            assert events(response)[-1]["error"]["message"] == "the server is stopping"
        else:
            assert response.status_code == 503 and response.json()["error"]["message"] == "the server is stopping"
    free.set()
    assert server.worker.join(10) and len(server.pipeline.engine.waiting) + len(server.pipeline.engine.running) <= asked


def test_a_store_that_fails_is_not_the_clients_fault(served):
    server = served()

    def damaged(*_, **__):
        raise StoreError("stores/a: chunk 'x' is not as it was written")

    server.pipeline.search = damaged
    response = httpx.post(f"{server.url}/v1/search", json={"question": "x"})
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert "chunk 'x' is not as it was written" in response.json()["error"]["message"]


def test_metrics_count_what_was_done(served):
    server = served()
    httpx.post(f"{server.url}/v1/chat/completions", json=chat())
    httpx.post(f"{server.url}/v1/chat/completions", json=chat(abstain_below=0.9))
    for number in range(5):
        httpx.get(f"{server.url}/nothing/{number}")
    text = httpx.get(f"{server.url}/metrics").text
    for line in (
        'clara_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'clara_requests_total{route="other",status="404"} 5.0',
        "clara_answer_tokens_total 28.0",
        "clara_abstained_total 1.0",
        "clara_compressed_chunks_total 2.0",
        "clara_inside 0.0",
        "clara_rows 4.0",
        "clara_prefixes_found 3.0",
        "clara_prefixes_missed 2.0",
    ):
        assert line in text
