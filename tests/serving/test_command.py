"""The command: a real model behind a real socket, ended by a signal; and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import jax
import pytest
from starlette.testclient import TestClient

from clara_jax import serve
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import prefill
from tests.test_rag_pipeline import checkpoint  # noqa: F401  (a fixture)
from tests.tiny import document, write_base


@pytest.fixture(scope="module")
def started(checkpoint, tmp_path_factory):  # noqa: F811
    store = tmp_path_factory.mktemp("served") / "store"
    command = [sys.executable, "-m", "clara_jax.serve", "--checkpoint", str(checkpoint), "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--rows", "4", "--no-warm-up"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("listening at "):
            break
    else:
        pytest.fail("".join(said))
    yield process, line.split()[-1]
    process.kill()
    process.wait()


def test_a_document_goes_in_and_questions_come_back_answered(started):
    process, url = started
    documents = [{"id": f"d{i}", "text": document(i)} for i in range(12)]
    with httpx.Client(base_url=url, timeout=120) as client:
        assert client.post("/v1/documents", json={"documents": documents}).json()["compressed"] == 12
        assert client.post("/v1/documents", json={"documents": documents}).json()["unchanged"] == 12
        request = {"messages": [{"role": "user", "content": "Where was Ada number 0 born?"}], "max_tokens": 8, "k": 3}
        body = client.post("/v1/chat/completions", json=request).json()
        assert len(body["sources"]) == 3 and len(body["found"]["candidates"]) == 12
        assert body["usage"]["completion_tokens"] <= 8
        streamed = client.post("/v1/chat/completions", json=request | {"stream": True}).text
        pieces = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]
        text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        assert text == body["choices"][0]["message"]["content"]
        found = client.post("/v1/search", json={"question": "Ada", "how": "words", "k": 2}).json()["hits"]
        ranked = client.post("/v1/rank", json={"question": "Who?", "documents": [document(1), document(2)]}).json()
        assert len(found) == 2 and {one["index"] for one in ranked["results"]} == {0, 1}
        assert client.post("/v1/search", json={"question": "x", "where": "colour = 1"}).status_code == 400


def test_ended_by_a_signal_it_finishes_what_it_has_begun(started):
    process, url = started
    found = {}

    def ask():
        request = {"messages": [{"role": "user", "content": "Who is a painter?"}], "max_tokens": 200, "temperature": 2}
        found["answer"] = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=120)

    thread = threading.Thread(target=ask)
    thread.start()
    while httpx.get(f"{url}/health").json()["inside"] == 0 and thread.is_alive():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    thread.join(120)
    assert found["answer"].status_code == 200 and found["answer"].json()["choices"]
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rows", "0"], "--rows: 0 must be above 0"),
        (["--request-seconds", "-1"], "--request-seconds"),
        (["--api-key-file", "nowhere"], "--api-key-file: nowhere cannot be read"),
        (["--api-key-file", "empty"], "the first line of empty is empty"),
        ([], "no such directory"),
        (["--text", "smollm2"], "--checkpoint: means nothing with --text"),
    ],
)
def test_what_it_refuses(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\nkey")
    with pytest.raises(ClaraError, match=said):
        run(monkeypatch, "--checkpoint", "nothing", "--store", "s", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--store: is missing"),
        (["--checkpoint", "c"], "--store: is missing"),
        (["--text", "b", "--store", "s"], "--store: means nothing with --text"),
        (["--text", "b", "--base", "s"], "--base: means nothing with --text"),
        (["--text", "b"], "b: no such directory or .gguf file"),
        (["--text", "bare"], "no chat template"),
        (["--text", "bare", "--weights", "heavy"], "weights: 'heavy' must be one of"),
    ],
)
def test_a_store_or_a_base_alone(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "bare", chat_template=None)
    with pytest.raises(ClaraError, match=said):
        run(monkeypatch, *options)


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["serve", *options])
    serve.main()


def test_a_base_is_served_ready_to_answer(tmp_path, monkeypatch, capsys):
    """All but the socket; its engine has compiled what a chat needs before the first comes."""
    served = []
    monkeypatch.setattr(serve, "_listen", lambda app, worker, *rest: served.extend((app, worker)))
    run(monkeypatch, "--text", str(write_base(tmp_path / "tiny")), "--precision", "float32", "--rows", "3")
    app, worker = served
    rows = jax.device_count()  # the next number that they divide
    assert worker.rows == rows and f"tiny, weights merged, {rows} rows" in capsys.readouterr().out
    with TestClient(app, base_url="http://127.0.0.1") as client:
        while client.get("/health").status_code == 503:  # until it is ready
            time.sleep(0.05)
        before = prefill._cache_size()
        chat = {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 64}
        assert client.post("/v1/chat/completions", json=chat).json()["model"] == "tiny"
        assert client.get("/").status_code == 404
    assert prefill._cache_size() == before > 0
    worker.end()


def test_loopback_is_told_from_the_rest():
    assert all(map(serve._loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(serve._loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
