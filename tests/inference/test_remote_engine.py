"""Answers that another server writes from prompt embeddings: the engine's here, and every failure is one line."""

import contextlib
import dataclasses
import io
import json
import sys
import threading
import warnings
from types import SimpleNamespace

import httpx
import ml_dtypes
import numpy as np
import pytest

from clara_jax import ask as ask_command
from clara_jax import mcp
from clara_jax.api import Clara
from clara_jax.checkpoints import exporting, opening
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.formats.torch_file import write_pth
from clara_jax.inference import generator_server
from clara_jax.inference.generator_server import KEY_VARIABLE, GeneratorServer, GeneratorServerError
from clara_jax.inference.requests import Request
from clara_jax.input_pipeline import prompts
from clara_jax.integrations import mcp_server
from clara_jax.method.clara import ClaraConfig
from clara_jax.rag_pipeline import RagPipeline
from tests import generators
from tests.serving.fakes import serve
from tests.tiny import document, with_adapters, write_base

DOCUMENTS = [document(i) for i in range(8)]
QUESTIONS = ["Where was Ada number 0 born?", "Who works in Kyoto?", "What is Noor number 6?", "Where?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, mesh):
    """A checkpoint whose adapters do something, and its merged export."""
    folder = tmp_path_factory.mktemp("place")
    clara = ClaraConfig(doc_max_length=64, compress_rate=8, lora_rank=4, max_length=384)
    bundle = with_adapters(opening.from_base(str(write_base(folder / "base")), clara, mesh, "float32"))
    bundle.save(folder / "checkpoint", "end_to_end")
    exporting.export_merged(bundle, folder / "merged")
    return folder


@pytest.fixture(scope="module")
def local(place, mesh):
    return Clara.load(place / "checkpoint", mesh=mesh, batch_size=4)


@pytest.fixture(scope="module")
def merged(place, mesh):
    return generators.Merged(place / "merged", mesh)


@pytest.fixture
def start(merged):
    running = []

    def started(kind="vllm", **options):
        running.append(generators.GeneratorFixture(merged, kind, **options))
        return running[-1]

    yield started
    for one in running:
        one.end()


@pytest.mark.parametrize("kind, incremental", [("vllm", False), ("sglang", False), ("sglang", True)])
def test_the_answers_are_those_of_the_engine_here(local, start, kind, incremental):
    server = start(kind, incremental=incremental)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is the same model, which is checked at the beginning
        there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    lists = [DOCUMENTS[i : i + 3] for i in range(4)]
    ours = local.answer(QUESTIONS, documents=lists, k=2, max_new_tokens=12)
    theirs = there.answer(QUESTIONS, documents=lists, k=2, max_new_tokens=12)
    assert [answer.text for answer in theirs] == [answer.text for answer in ours]
    assert [answer.tokens for answer in theirs] == [answer.tokens for answer in ours]
    assert len({answer.tokens for answer in ours}) > 1
    for one, other in zip(theirs, ours, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-2)
        assert one.sources == other.sources
    stream = there.answer(QUESTIONS[:1], documents=lists[:1], k=2, max_new_tokens=12, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == ours[0].text and stream.answer.tokens == ours[0].tokens and len(pieces) > 1
    assert there.paraphrase(DOCUMENTS[:1], max_new_tokens=4) == local.paraphrase(DOCUMENTS[:1], max_new_tokens=4)


def test_an_end_token_ends_an_answer_and_is_not_part_of_it(local, start):
    """Whatever the model would write first is made the end token."""
    server = start()
    first = local.answer(QUESTIONS[:1], documents=[DOCUMENTS[:3]], max_new_tokens=12)[0].tokens
    ends = (first[3],)
    bundle = dataclasses.replace(local.bundle)
    stopping, there = Clara(bundle, 4), Clara(bundle, 4, generator=GeneratorServer(server.url))
    for one in (stopping, there):
        one.engine._end_ids = ends
    results = [one.answer(QUESTIONS[:1], documents=[DOCUMENTS[:3]], max_new_tokens=12)[0] for one in (stopping, there)]
    assert results[0].tokens == results[1].tokens == first[: first.index(ends[0])]
    assert results[1].log_probability == pytest.approx(results[0].log_probability, abs=1e-2)


def test_what_is_sent_is_the_prompt_with_memories_in_their_places(local, start):
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    memories = local.compress(DOCUMENTS[:2]).array
    prompt = prompts.question(QUESTIONS[0], 2)
    request = there.request(prompt, memories)
    there.engine.generate([request])
    sent = generators.load_tensor(generators.base64.b64decode(server.bodies[-1]["prompt_embeds"]))
    table = exporting._tables(local.bundle, "float32")[exporting.EMBEDDING]
    for place, (token, index) in enumerate(zip(request.ids, request.memory_index, strict=True)):
        wanted = table[token] if index < 0 else memories.reshape(-1, memories.shape[-1])[index]
        np.testing.assert_array_equal(sent[place], wanted)
    assert sent.shape == (len(request.ids), 64) and sum(i >= 0 for i in request.memory_index) == 16


def test_the_pipeline_the_command_and_the_server(place, local, start, tmp_path, monkeypatch):
    server = start(key="sesame-open")
    monkeypatch.setenv(KEY_VARIABLE, "sesame-open")
    options = {"mesh": local.bundle.mesh, "batch_size": 4}
    here = RagPipeline.open(place / "checkpoint", tmp_path / "store", create=True, **options)
    here.add(DOCUMENTS)
    wanted = here.answer(QUESTIONS[0], k=2)
    there = RagPipeline.open(place / "checkpoint", tmp_path / "store", generator=f"{server.url}/v1", **options)
    answer = there.answer(QUESTIONS[0], k=2)
    assert (answer.text, answer.tokens) == (wanted.text, wanted.tokens) and answer.milliseconds["answer"] > 0
    command = ["ask", "--checkpoint", place / "checkpoint", "--store", tmp_path / "store", "--generator", server.url]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--k", "2", "--json", QUESTIONS[0]])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ask_command.main()
    assert json.loads(said.getvalue())["answer"] == wanted.text
    given, made = command[1:], []
    monkeypatch.setattr(sys, "argv", ["mcp", *map(str, given)])
    monkeypatch.setattr(mcp_server, "make_server", lambda one: made.append(one) or SimpleNamespace(run=str))
    mcp.main()
    assert made[0].engine.server.url == there.engine.server.url
    assert made[0].answer(QUESTIONS[0], k=2).text == wanted.text
    served = serve(pipeline=there)
    try:
        body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "k": 2, "max_tokens": 64}
        url = f"{served.url}/v1/chat/completions"
        whole = httpx.post(url, json=body, timeout=60).json()
        assert whole["choices"][0]["message"]["content"] == wanted.text
        assert whole["usage"]["completion_tokens"] == len(wanted.tokens)
        events = httpx.post(url, json=body | {"stream": True}, timeout=60).text.split("\n\n")
        pieces = [json.loads(event.removeprefix("data: ")) for event in events if event and "[DONE]" not in event]
        assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == wanted.text
        # The other server goes away: whole and streamed, that is an error of a gateway, in one line.
        server.answer = lambda path, body: (500, {"error": {"message": "out of\nmemory, sesame-open", "code": 500}})
        failed = httpx.post(url, json=body, timeout=60)
        assert failed.status_code == 502
        assert failed.json()["error"]["message"] == f"{server.url}: 500: out of memory, [redacted]"
        events = httpx.post(url, json=body | {"stream": True}, timeout=60).text
        assert "out of memory, [redacted]" in events and events.endswith("[DONE]\n\n") and "sesame" not in events
        server.answer = lambda path, body: None
        assert httpx.post(url, json=body, timeout=60).json()["choices"][0]["message"]["content"] == wanted.text
    finally:
        served.end()


def test_more_requests_than_rows_and_one_that_is_cancelled(local, start):
    server = start()
    there = Clara(local.bundle, 4, rows=2, generator=GeneratorServer(server.url))
    memories = local.compress(DOCUMENTS[:1]).array
    requests = [there.request(prompts.question(question, 1), memories) for question in QUESTIONS]
    wanted = [result.tokens for result in local.engine.generate(requests)]
    handles = [there.engine.submit(request) for request in requests]
    assert there.engine.step() and there.engine.busy == 2 and there.engine.waiting == 2
    handles[3].cancel()
    while there.engine.step():
        assert there.engine.busy <= 2
    assert [handle.result.tokens for handle in handles[:3]] == wanted[:3]
    assert handles[3].result.ended == "cancelled" and not handles[3].tokens
    assert len(server.bodies) == 4  # one to check the server, and three


def test_a_client_that_leaves_ends_the_answer_there(local, start):
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    server.pause = 0.05
    stream = there.answer(QUESTIONS[:1], documents=[DOCUMENTS[:2]], max_new_tokens=200, stream=True)
    next(stream)
    stream.close()
    assert not there.engine.step()
    for _ in range(200):
        if server.given_up:
            break
        threading.Event().wait(0.05)
    assert server.given_up == 1


ANSWERS, MODELS = "/v1/completions", "/v1/models"
REFUSALS = {
    "not enabled": (ANSWERS, 400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`."),
    "width": (ANSWERS, 400, "`prompt_embeds` hidden_size 64 does not match the model's hidden_size 128."),
    "no model": (ANSWERS, 404, "The model `x` does not exist."),
    "proxy": (ANSWERS, 503, "no healthy upstream"),
    "long": (ANSWERS, 400, "maximum context length is 128 tokens"),
    "empty": (ANSWERS, 200, ""),
    "key": (MODELS, 401, "Unauthorized"),
    "another format": (MODELS, 200, ""),
    "radix cache": ("/generate", 400, "input_embeds is provided while disable_radix_cache is False."),
}


@pytest.mark.parametrize(
    "name, message",
    [
        ("not enabled", "takes no embeddings; start it with --enable-prompt-embeds"),
        ("width", "serves a model of another width (400: `prompt_embeds` hidden_size 64 does not match"),
        ("no model", "has no /v1/completions (404: The model `x` does not exist.)"),
        ("proxy", "503: no healthy upstream"),
        ("long", "refuses the prompt (400: maximum context length is 128"),
        ("empty", "its reply is not in the format of vLLM or SGLang (no stream of events)"),
        ("key", "refuses the key (401: Unauthorized); set CLARA_GENERATOR_KEY"),
        ("another format", "its reply is not in the format of vLLM or SGLang"),
        ("radix cache", "takes no embeddings; start it with --disable-radix-cache"),
    ],
)
def test_every_refusal_is_one_line(local, start, name, message):
    path, status, words = REFUSALS[name]
    server = start("sglang" if path == "/generate" else "vllm")
    said = status, {"error": {"message": words}}
    server.answer = lambda asked, body: said if asked == path else None
    with pytest.raises(ClaraError) as raised:
        Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    assert str(raised.value).startswith(f"{server.url}: ") and message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, GeneratorServerError) == (name != "long")


def events(server, *lines):
    """Let a server answer with these lines."""

    def stream(http, body):
        http.send_response(200)
        http.end_headers()
        for line in lines:
            http.wfile.write(f"{line}\n\n".encode())

    server.vllm = server.sglang = stream


TOKEN = '"logprobs": {"token_logprobs": [-0.1]}, "finish_reason": null'


@pytest.mark.parametrize(
    "lines, message",
    [
        (['data: {"error": {"message": "EngineCore died", "code": 500}}'], "EngineCore died"),
        (["data: {"], "its reply is not in the format of vLLM or SGLang"),
        (['data: {"choices": [{"text": "a", "finish_reason": null}]}'], "does not tell the ids of tokens"),
        ([f'data: {{"choices": [{{"token_ids": [7], {TOKEN}}}]}}'], "broke off before the answer's end"),
        ([f'data: {{"choices": [{{"token_ids": [99999], {TOKEN}}}]}}'], "writes token 99999, and the model here has"),
        ([f'data: {{"choices": [{{"token_ids": [1, 2, 3, 4], {TOKEN}}}]}}'] * 30, "more tokens than it was asked for"),
        ([f'data: {{"choices": [{{"token_ids": ["1"], {TOKEN}}}]}}'], "token ids that are no numbers"),
        (['data: {"choices": [{"token_ids": [], "finish_reason": "abort"}]}'], "ended the answer: abort"),
        ([": a comment", "data: [DONE]"], "broke off before the answer's end"),
        (["<html>hello</html>"], "not in the format of vLLM or SGLang (no stream of events)"),
        ([f'data: {{"choices": [{{"token_ids": [7], {TOKEN.replace("-0.1", "NaN")}}}]}}'], "the log-probability nan"),
        ([f'data: {{"choices": [{{"token_ids": [7], {TOKEN.replace("0.1", "Infinity")}}}]}}'], "log-probability -inf"),
        ([f'data: {{"choices": [{{"token_ids": [7], {TOKEN.replace("-0.1", "9" * 400)}}}]}}'], "int too large"),
        ([f"data: {'x' * 3000}"], "its reply has no end"),
    ],
)
def test_whatever_a_server_streams_a_failure_is_one_line(local, start, lines, message, monkeypatch):
    monkeypatch.setattr(generator_server, "LONGEST_REPLY", 2000)
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    events(server, *lines)
    with pytest.raises(GeneratorServerError) as raised:
        there.answer(QUESTIONS[:1], documents=[DOCUMENTS[:2]], max_new_tokens=16)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert there.engine.busy == there.engine.waiting == 0


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "é"])
def test_letters_that_end_a_line_of_text_end_none_here(local, start, letter):
    """Servers write JSON in UTF-8, in which U+2028 and others stand as they are."""
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    choice = f'{{"choices": [{{"text": "{letter} {letter}", "token_ids": [%d], {TOKEN.replace("null", "%s")}}}]}}'
    events(server, f"data: {choice % (7, 'null')}", f"data: {choice % (8, json.dumps('length'))}")
    (answer,) = there.answer(QUESTIONS[:1], documents=[DOCUMENTS[:2]], max_new_tokens=16)
    assert answer.tokens == (7, 8) and answer.log_probability == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "url, message",
    [
        ("user:hidden-word@host:8000", "host:8000: is no address of a server"),
        ("http://user:hidden/word@host:8000", "host:8000: is no address of a server"),
        (f"http://{'a' * 70}", "cannot be reached: .*label too long"),
        ("http://a..b", "cannot be reached: .*label empty"),
        ("http://h\0st", "cannot be reached: Invalid non-printable"),
        ("http://xn--", "cannot be reached: Malformed A-label"),
    ],
)
def test_what_is_no_address_is_one_line_without_secrets(url, message):
    with pytest.raises(ClaraError, match=message) as raised:
        GeneratorServer(url)
    assert "hidden" not in str(raised.value) and "word" not in str(raised.value)


def test_a_proxy_that_is_no_address(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "nothing://proxy")
    with pytest.raises(GeneratorServerError, match="http://host: cannot be reached: .*proxy"):
        GeneratorServer("http://host")


def test_a_redirect_a_query_and_a_list_without_end(start, monkeypatch):
    server, asked = start(), []

    def redirect(http, status, body):
        asked.append(http.path)
        http.send_response(307)
        http.send_header("location", "http://user:hidden-word@other/v1")
        http.end_headers()

    server.say = redirect
    with pytest.raises(GeneratorServerError, match=r"redirects to http://\[redacted\]@other/v1 \(307\); give the"):
        GeneratorServer(f"{server.url}/v1/?api-version=2&key=hidden-word")
    assert asked == ["/v1/models?api-version=2&key=hidden-word"]
    monkeypatch.setattr(generator_server, "LONGEST_REPLY", 50)
    with pytest.raises(GeneratorServerError, match="its reply has no end; is it vLLM or SGLang"):
        GeneratorServer(start().url)


@pytest.mark.parametrize("root", [["x"], {"a": 1}, 5])
def test_a_root_that_is_no_text(start, root):
    with pytest.raises(GeneratorServerError, match="is not in the format of vLLM or SGLang .a model's root"):
        GeneratorServer(start(cards=[{"id": "one", "root": root}]).url)


def test_no_server_and_a_slow_one(local, start):
    with pytest.raises(GeneratorServerError, match="http://127.0.0.1:9: cannot be reached: .*; does the server run"):
        Clara.load("nowhere", generator="http://user:hidden-word@127.0.0.1:9")
    with pytest.raises(ClaraError, match="ftp://x: is no address of a server"):
        GeneratorServer("ftp://x")
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url, timeout=0.3))
    server.vllm = lambda http, body: threading.Event().wait(2)
    with pytest.raises(GeneratorServerError, match="no answer in 0.3 seconds"):
        there.answer(QUESTIONS[:1], documents=[DOCUMENTS[:2]])
    for wrong in (0, float("nan")):
        with pytest.raises(ClaraError, match=f"timeout: {wrong} must be more than 0"):
            GeneratorServer(server.url, timeout=wrong)
    with pytest.raises(ClaraError, match="weights: mean nothing"):
        Clara(local.bundle, 4, weights="merged", generator=GeneratorServer(server.url))


def test_no_message_shows_a_secret(start, monkeypatch):
    server = start(key="sesame-open")
    server.answer = lambda path, body: (401, {"error": "the key open-sesame-9 of user:hidden-word is wrong"})
    with pytest.raises(GeneratorServerError) as raised:
        GeneratorServer(server.url.replace("http://", "http://user:hidden-word@"), key="open-sesame-9")
    assert "sesame" not in str(raised.value) and "hidden" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__context__ is None


def test_which_model_is_served(local, start, place, merged, tmp_path, mesh):
    cards = [{"id": name, "owned_by": "vllm", "root": name} for name in ("one", "two")]
    server = start(cards=cards)
    with pytest.raises(ClaraError, match="which model is to answer. name one of one, two"):
        GeneratorServer(server.url)
    with pytest.raises(ClaraError, match="serves no model 'three'; its models: one, two"):
        GeneratorServer(server.url, "three")
    assert GeneratorServer(server.url, "two").model == "two"
    server.cards = [card | {"root": "/one"} for card in cards]  # one model with two names
    assert GeneratorServer(server.url).model == "one"
    # Its folder can be read from here: the base without the added tokens, and another model.
    server.cards = [{"id": "base", "owned_by": "vllm", "root": str(place / "base")}]
    with pytest.raises(ClaraError, match="whose vocab_size is .*, and not .* as of the model here; serve the export"):
        Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    wide = write_base(tmp_path / "wide", hidden_size=128)
    server.cards = [{"id": "wide", "owned_by": "vllm", "root": str(wide)}]
    with pytest.raises(ClaraError, match="whose hidden_size is 128, and not 64"):
        Clara(local.bundle, 4, generator=GeneratorServer(server.url))


def test_another_model_of_the_same_shape_is_warned_of(local, start, mesh, tmp_path):
    other = opening.from_base(str(write_base(tmp_path / "base", seed=5)), local.bundle.model.clara, mesh, "float32")
    exporting.export_merged(other, tmp_path / "merged")
    server = generators.GeneratorFixture(generators.Merged(tmp_path / "merged", mesh), "vllm")
    with pytest.warns(ClaraWarning, match="gives a test prompt's next token the log-probability .* not quantized"):
        Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    server.end()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_single_tensor_in_the_format_of_torch_save(dtype, tmp_path):
    array = np.arange(15).reshape(5, 3).astype(dtype)
    write_pth(tmp_path / "a.pth", array)
    np.testing.assert_array_equal(generators.load_tensor((tmp_path / "a.pth").read_bytes()), array)


def test_requests_that_no_engine_takes_are_refused_before_they_are_sent(local, start):
    server = start()
    there = Clara(local.bundle, 4, generator=GeneratorServer(server.url))
    sent = len(server.bodies)
    with pytest.raises(ClaraError, match="prompt 0: memories of the shape"):
        there.engine.generate([Request([5, 6], [0, -1], np.zeros((1, 2, 64), np.float32))])
    assert len(server.bodies) == sent
