"""The client of a language model, against a server that behaves in every way but the right one."""

import asyncio
import dataclasses
import json
import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from clara_jax.errors import ClaraError
from clara_jax.redaction import redacted
from clara_jax.synthesis import endpoint as module
from clara_jax.synthesis.completion import Completion, CompletionRequest, RefusedError
from clara_jax.synthesis.endpoint import Endpoint
from tests.synthesis.scripted import Misbehaviour, Scripted, fails, raw, says

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
GOOD = says("well", usage={"prompt_tokens": 12, "completion_tokens": 3})
BACK_OFF = module.BACK_OFF
KEY = "sk-very/secret+key-0123456789"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", wait_none())
    monkeypatch.setattr(module, "REST", 0.0)


def question(number=0, schema=None, text="Which town?", max_tokens=50):
    return CompletionRequest((("system", "Answer."), ("user", f"{text} {number}")), schema, max_tokens, 0.5, number)


async def ask_all(url, asks, **options):
    endpoint = Endpoint(url, "small", **options)
    try:
        results = await asyncio.gather(*map(endpoint.ask, asks), return_exceptions=True)
    finally:
        await endpoint.close()
    return endpoint, results


def run(behave, *asks, **options):
    """The server afterwards, the endpoint, and each ask's reply or exception."""
    with Scripted(behave) as server:
        return server, *asyncio.run(ask_all(server.url, asks or [question()], **options))


def chain(error):
    """Whatever a traceback could show of an exception."""
    while error is not None:
        yield f"{error!r} {error} {error.args}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("refusal", "option", "sent"),
    [
        (
            {"message": "Unsupported parameter: 'max_tokens' is not supported.", "param": "max_tokens"},
            "max_tokens",
            {"max_completion_tokens": 50, "temperature": 0.5, "seed": 0},
        ),
        (
            {"message": "This value is not right.", "param": "temperature", "code": "unsupported_value"},
            "temperature",
            {"max_tokens": 50, "seed": 0},
        ),
        (
            [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}],
            "seed",
            {"max_tokens": 50, "temperature": 0.5},
        ),
    ],
)
def test_an_option_that_the_server_does_not_take_is_left_out_from_then_on(refusal, option, sent):
    def behave(body, nth):
        return raw(json.dumps({"detail" if option == "seed" else "error": refusal}), 422) if option in body else GOOD

    asks = [question(0), question(0, SCHEMA)]
    server, endpoint, replies = run(behave, *asks, concurrency=1)
    assert [reply.text for reply in replies] == ["well"] * 2 and endpoint.structured == "schema"
    names = ("max_tokens", "max_completion_tokens", "temperature", "seed")
    bodies = [{name: request.body[name] for name in names if name in request.body} for request in server.requests]
    assert bodies[1:] == [sent] * 2 and endpoint.repeated == {"unwanted_option": 1}


def test_a_value_that_the_server_does_not_take_is_refused():
    words = {"message": "max_tokens is too large: 50", "param": "max_tokens", "code": "invalid_value"}
    server, _, (error,) = run(lambda body, nth: raw(json.dumps({"error": words}), 400))
    assert isinstance(error, RefusedError) and "too large" in str(error) and len(server.requests) == 1


def test_what_is_sent_and_what_comes_back():
    server, endpoint, (reply,) = run(lambda body, nth: GOOD, question(7, SCHEMA), key=KEY)
    assert reply == Completion("well", 12, 3, False)
    (request,) = server.requests
    schema = {"name": "reply", "schema": SCHEMA, "strict": True}
    assert request.body == {
        "model": "small",
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Which town? 7"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (endpoint.requests, endpoint.answered, endpoint.repeated) == (1, 1, {})


def test_a_cut_answer_and_one_without_usage():
    def behave(body, nth):
        return says("abcde", "length") if body["seed"] else says(None, "length", {"prompt_tokens": None})

    _, _, (thoughts, cut) = run(behave, question(0), question(1, text="é" * 30))
    assert thoughts == Completion("", 6, 0, True)
    assert cut == Completion("abcde", 2 + 8, 2, True)  # four characters a token, rounded up


@pytest.mark.parametrize(
    ("misbehaviour", "cause"),
    [
        (raw("<html>no</html>"), "not_a_completion"),
        (raw(""), "not_a_completion"),
        (raw("[" * 100_000), "not_a_completion"),
        (raw("[1]"), "not_a_completion"),
        (raw('{"choices": []}'), "not_a_completion"),
        (raw('{"choices": [{"message": null}]}'), "not_a_completion"),
        (raw('{"choices": [{"message": {"content": {"a": 1}}}]}'), "not_a_completion"),
        (raw('{"error": {"message": "overloaded"}}'), "not_a_completion"),
        (raw('{"choices": [{"message"'), "not_a_completion"),
        (says(" \n"), "empty"),
        (says(None), "empty"),
        (fails(408), "http_408"),
        (fails(409), "http_409"),
        (fails(429), "http_429"),
        (fails(500), "http_500"),
        (raw("bad gateway", 502), "http_502"),
        (fails(503, retry_after="0"), "http_503"),
        (Misbehaviour.HANG, "timeout"),
        (Misbehaviour.DRIBBLE, "timeout"),
        (Misbehaviour.DROP, "connection"),
        (Misbehaviour.DROP_MIDWAY, "connection"),
    ],
    ids=str,
)
def test_what_passes_is_waited_out(misbehaviour, cause):
    _, endpoint, (reply,) = run(lambda body, nth: misbehaviour if nth < 3 else GOOD, timeout=1.0)
    assert reply == Completion("well", 12, 3, False)
    assert (endpoint.requests, endpoint.answered, endpoint.repeated) == (3, 1, {cause: 2})


@pytest.mark.parametrize(
    ("misbehaviour", "words"),
    [
        (fails(500, "out\nof  memory\x1b[2J"), "the server says 500: out of memory [2J"),
        (fails(429, "slow down"), "the server says 429: slow down"),
        (raw("not\njson"), "no chat completion: not json"),
        (raw('{"error": {"message": "overloaded"}}'), "no chat completion: overloaded"),
        (Misbehaviour.HANG, "it took longer than 0.1 seconds"),
    ],
    ids=str,
)
def test_what_does_not_pass_ends_it(misbehaviour, words):
    server, _, (error,) = run(lambda body, nth: misbehaviour, attempts=3, timeout=0.1)
    assert len(server.requests) == 3
    assert type(error) is ClaraError
    assert str(error) == (
        f"{server.url}: no answer in 3 attempts, the last one: {words}; when the server is well, the same command goes "
        "on from here"
    )


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    endpoint, (error,) = asyncio.run(ask_all(url, [question()], attempts=2))
    assert str(error).startswith(f"{url}: no answer in 2 attempts, the last one: Cannot connect to host")
    assert endpoint.repeated == {"connection": 1}


def ask_among_others(behave, **options):
    """The server afterwards, and what becomes of request 0 while others are asked one by one."""

    async def whole(server):
        endpoint = Endpoint(server.url, "small", timeout=1.0, **options)
        one = asyncio.ensure_future(endpoint.ask(question(0)))
        number = 0
        while not one.done():
            await endpoint.ask(question(number := number + 1))
        await endpoint.close()
        return (await asyncio.gather(one, return_exceptions=True))[0]

    with Scripted(behave) as server:
        return server, asyncio.run(whole(server))


@pytest.mark.parametrize(
    "misbehaviour", [fails(500, "it fell over"), raw("{}"), Misbehaviour.HANG, Misbehaviour.DROP], ids=str
)
def test_one_that_fails_while_others_are_answered_is_refused(misbehaviour, monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", lambda state: 0.2)
    _, error = ask_among_others(lambda body, nth: GOOD if body["seed"] else misbehaviour, attempts=2)
    assert isinstance(error, RefusedError)
    assert str(error).startswith("no answer in 2 attempts, the last one: ")


def test_a_busy_server_that_answers_others_uses_up_no_attempts(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", lambda state: 0.2)
    server, reply = ask_among_others(lambda body, nth: GOOD if body["seed"] or nth > 5 else fails(429), attempts=2)
    assert reply.text == "well"
    assert sum(request.body["seed"] == 0 for request in server.requests) == 6


def test_one_whose_answers_are_empty_is_refused():
    server, _, (error,) = run(lambda body, nth: says(""), attempts=3)
    assert isinstance(error, RefusedError)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fails(400, "too long"), "the server says 400: too long"),
        (raw('{"object": "error", "message": "this one not"}', 400), "the server says 400: this one not"),
        (raw('{"detail": [{"loc": 1}]}', 422), 'the server says 422: [{"loc": 1}]'),
        (raw("", 413), "the server says 413: no reason"),
        (fails(400, "x" * 999), f"the server says 400: {'x' * 199}…"),
        (says("half", "content_filter"), "the server's filter: content_filter"),
        (says(None, refusal="I will not"), "the server's filter: I will not"),
    ],
    ids=str,
)
def test_a_refusal_is_of_one_request_and_is_not_repeated(answer, words):
    server, endpoint, (error, reply) = run(
        lambda body, nth: answer if body["seed"] == 0 else GOOD, question(0), question(1)
    )
    assert isinstance(error, RefusedError) and str(error) == words
    assert reply.text == "well"
    assert (len(server.requests), endpoint.repeated) == (2, {})


def test_text_that_cannot_be_sent_is_refused():
    server, _, (error,) = run(lambda body, nth: GOOD, question(text="\ud800"))
    assert isinstance(error, RefusedError)
    assert not server.requests


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fails(401, "who?"), "the key is missing, wrong, or not for this model; the server says 401: who?"),
        (fails(403, "no"), "the key is missing, wrong, or not for this model; the server says 403: no"),
        (fails(404, "where?"), "there is no model 'small', or the address is wrong (most end in /v1)"),
        (raw('{"error": {"message": "hm", "code": "model_not_found"}}', 400), "there is no model 'small'"),
        (fails(402, "pay first"), "the server says 402: pay first"),
        (fails(501, "cannot chat"), "the server says 501: cannot chat"),
        (fails(429, "enough", retry_after="86400"), "429: enough; start the same command again in 86,400 s"),
    ],
    ids=str,
)
def test_what_no_repetition_helps_ends_it_at_once(answer, words):
    server, _, (error,) = run(lambda body, nth: answer)
    assert type(error) is ClaraError
    assert str(error).startswith(f"{server.url}: ") and words in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("concurrency", [1, 5])
def test_requests_in_flight(concurrency):
    server, _, replies = run(
        lambda body, nth: dataclasses.replace(GOOD, after=0.01), *map(question, range(64)), concurrency=concurrency
    )
    assert [reply.text for reply in replies] == ["well"] * 64
    assert server.most_in_flight == concurrency


@pytest.mark.parametrize("date", [False, True])
def test_a_busy_server_is_left_alone_by_all(date):
    """The first request of several is told to come later; no other one is sent until then."""
    told = []

    def behave(body, nth):
        if told:
            return GOOD
        told.append(time.monotonic())
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if date else "1"
        return fails(429, retry_after=later)

    server, endpoint, replies = run(behave, *map(question, range(8)), concurrency=1)
    assert [reply.text for reply in replies] == ["well"] * 8
    # A date has whole seconds.
    assert min(request.at for request in server.requests[1:]) - told[0] > (0.9 if date else 0.99)
    assert endpoint.waited > 1.5  # two of them at least waited


def test_all_wait_where_no_time_is_told(monkeypatch):
    monkeypatch.setattr(module, "REST", 0.3)
    server, _, replies = run(
        lambda body, nth: GOOD if body["seed"] or nth > 1 else fails(429), *map(question, range(4)), concurrency=1
    )
    assert [reply.text for reply in replies] == ["well"] * 4
    assert server.requests[1].at - server.requests[0].at > 0.29


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr(module, "BACK_OFF", lambda state: waits.append(BACK_OFF(state)) or 0)
    run(lambda body, nth: fails(500), attempts=9)
    assert len(waits) >= 8
    for wait, floor in zip(waits, (2, 4, 8, 16, 32, 60, 60, 60), strict=False):
        assert floor <= wait <= floor + 2


@pytest.mark.parametrize("rate", [{"requests_per_minute": 60 * 40}, {"tokens_per_minute": 60 * 40 * 54}])
def test_rates_are_kept(rate):
    """Each request has 4 tokens of prompt and 50 of the answer: 40 of them a second, either way."""
    began = time.monotonic()
    server, endpoint, _ = run(lambda body, nth: GOOD, *map(question, range(70)), **rate)
    for number, request in enumerate(server.requests, 1):
        assert number <= 40 + 40 * (request.at - began) + 1  # what a second allows may go at once
    assert endpoint.waited > 0.7


def test_a_request_of_more_tokens_than_a_second_allows():
    _, endpoint, (reply,) = run(lambda body, nth: GOOD, question(max_tokens=996), tokens_per_minute=60 * 800)
    assert reply.text == "well"
    assert 0.24 < endpoint.waited < 1


def formats(server):
    return [request.body.get("response_format", {}).get("type", "none") for request in server.requests]


@pytest.mark.parametrize("status", [400, 422, 501])
@pytest.mark.parametrize(("takes", "expected"), [(("object", "none"), "object"), (("none",), "none")])
def test_how_json_is_asked_for_is_found_out_once(status, takes, expected):
    names = {"json_schema": "schema", "json_object": "object", "none": "none"}

    def behave(body, nth):
        kind = names[body.get("response_format", {}).get("type", "none")]
        return dataclasses.replace(GOOD, after=0.02) if kind in takes else fails(status, "no response_format here")

    async def whole(server):
        endpoint = Endpoint(server.url, "small")
        replies = await asyncio.gather(*(endpoint.ask(question(i, SCHEMA)) for i in range(64)))
        first = len(server.requests)
        replies += await asyncio.gather(*(endpoint.ask(question(i, SCHEMA)) for i in range(64, 80)))
        await endpoint.close()
        return endpoint, replies, first

    with Scripted(behave) as server:
        endpoint, replies, first = asyncio.run(whole(server))
    assert [reply.text for reply in replies] == ["well"] * 80
    assert endpoint.structured == expected
    sent = [names[kind] for kind in formats(server)]
    assert sent.count("schema") == 64  # those in flight at the beginning
    assert sent.count("object") == (80 if expected == "object" else 1)
    assert set(sent[first:]) == {expected}


def test_a_request_that_is_refused_in_every_way_changes_nothing():
    def behave(body, nth):
        return fails(400, "too long") if body["seed"] == 0 else GOOD

    server, endpoint, (error,) = run(behave, question(0, SCHEMA))
    assert str(error) == "the server says 400: too long"
    assert formats(server) == ["json_schema", "json_object", "none"]
    assert endpoint.structured == "schema"

    async def after_another(server):
        endpoint = Endpoint(server.url, "small")
        await endpoint.ask(question(1, SCHEMA))
        with pytest.raises(RefusedError, match="too long"):
            await endpoint.ask(question(0, SCHEMA))
        await endpoint.close()

    with Scripted(behave) as server:
        asyncio.run(after_another(server))
    assert formats(server) == ["json_schema"] * 2  # the server takes this schema: it is not the reason


@pytest.mark.parametrize(
    ("structured", "sent"), [("schema", "json_schema"), ("object", "json_object"), ("none", "none")]
)
def test_how_json_is_asked_for_may_be_told(structured, sent):
    server, _, (error,) = run(lambda body, nth: fails(400), question(0, SCHEMA), structured=structured)
    assert isinstance(error, RefusedError)
    assert formats(server) == [sent]
    server, _, _ = run(lambda body, nth: GOOD, question(0, None), structured=structured)
    assert formats(server) == ["none"]


@pytest.mark.parametrize("status", [200, 400, 401, 404, 418, 429, 500])
def test_no_message_has_a_secret(status, caplog):
    """The server echoes all that it was sent, in the words of an error."""
    seen = []

    def behave(body, nth):
        request = server.requests[-1]
        seen.append(f"{request.headers['authorization']} {request.path}")
        escaped = json.dumps(seen[-1]).replace("/", r"\/")
        return raw(f'{{"error": {{"message": {escaped}}}}}' if nth % 2 else f"<p>{escaped} {seen[-1]}", status)

    caplog.set_level(logging.DEBUG)
    shown = []
    for secrets, address in (([KEY], ""), (["pass%40word", "pass@word", "dXNlcjpwYXNzQHdvcmQ="], "user:pass%40word@")):
        for attempts in (1, 2):
            with Scripted(behave) as server:
                url = f"{server.url.replace('://', f'://{address}')}?api-version=7&api_key=hidden-in-url"
                endpoint, (error,) = asyncio.run(ask_all(url, [question()], key=KEY, attempts=attempts))
            assert secrets[-1] in seen[-1] and "hidden-in-url" in seen[-1] and "api-version=7" in seen[-1]
            shown += [*chain(error), repr(endpoint), str(endpoint)]
    shown += [record.getMessage() for record in caplog.records]
    for secret in (KEY, KEY.replace("/", r"\/"), "pass@word", "pass%40word", "dXNlcjpwYXNzQHdvcmQ", "hidden-in-url"):
        assert not [text for text in shown if secret in text]
    assert status == 200 or any("[redacted]" in text for text in shown)


def test_a_secret_that_a_message_is_cut_in():
    _, _, (error,) = run(lambda body, nth: fails(400, "x" * 190 + KEY + "y" * 100), key=KEY)
    assert "sk-v" not in str(error)


@pytest.mark.parametrize("form", ["{}", "the key is {}.", "<{}>"])
def test_a_reply_that_repeats_the_key_is_not_kept(form):
    """As it is, or escaped for JSON or URLs; the words that local servers take for keys are words."""
    for shown in (KEY, KEY.replace("/", r"\/"), quote(KEY, safe="")):
        _, _, (error,) = run(lambda body, nth, shown=shown: says(form.format(shown)), key=KEY)
        assert isinstance(error, RefusedError) and "repeats the key" in str(error)
        assert not [text for text in chain(error) if KEY in text or shown in text]
    _, _, (reply,) = run(lambda body, nth: says("none is EMPTY"), key="EMPTY")
    assert reply.text == "none is EMPTY"


def test_redacted():
    assert redacted("no secret: a=b, https://host/v1?model=m", "") == "no secret: a=b, https://host/v1?model=m"
    assert redacted("at https://me:word@host/v1?token=abc&n=1") == "at https://[redacted]@host/v1?token=[redacted]&n=1"
    assert redacted(r"a\/b, b%2Bc and a/b/b+c", "a/b", "b+c") == "[redacted], [redacted] and [redacted]/[redacted]"
    began = time.perf_counter()
    redacted("?" + "key" * 300_000 + "://" * 100_000, KEY)
    assert time.perf_counter() - began < 2


def test_a_local_server_is_not_told_the_key_of_another(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    server, _, _ = run(lambda body, nth: GOOD)
    assert not [value for value in server.requests[0].headers.values() if "sk-" in value]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_each_attempt_may_be_forbidden(allowed):
    """The first way of asking for JSON is refused, and the second answer is broken off: three attempts."""
    left = [None] * allowed

    async def whole(server):
        endpoint = Endpoint(server.url, "small")
        with pytest.raises(IndexError):
            await endpoint.ask(question(0, SCHEMA), left.pop)
        await endpoint.close()

    with Scripted(lambda body, nth: (fails(400), Misbehaviour.DROP, GOOD)[nth - 1]) as server:
        asyncio.run(whole(server))
    assert len(server.requests) == allowed


def test_an_interrupt_leaves_nothing_behind():
    async def whole(server):
        endpoint = Endpoint(server.url, "small", concurrency=4)
        tasks = [asyncio.ensure_future(endpoint.ask(question(i))) for i in range(12)]
        while server.in_flight < 4:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await endpoint.close()
        for _ in range(100):
            if not server.in_flight:
                break
            await asyncio.sleep(0.01)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return results, left, server.in_flight

    with Scripted(lambda body, nth: Misbehaviour.HANG) as server:
        results, left, in_flight = asyncio.run(whole(server))
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert (left, in_flight, len(server.requests)) == ([], 0, 4)


def test_attempts_that_were_given_up_hold_no_place():
    def behave(body, nth):
        return Misbehaviour.HANG if nth < 3 else GOOD

    server, endpoint, replies = run(behave, *map(question, range(12)), concurrency=4, timeout=0.5)
    assert [reply.text for reply in replies] == ["well"] * 12
    assert server.most_in_flight <= 5  # the server learns a little later that one is given up


def test_keys_of_requests():
    ask = question(1, SCHEMA)
    others = [
        dataclasses.replace(ask, messages=ask.messages[::-1]),
        dataclasses.replace(ask, schema=None),
        dataclasses.replace(ask, max_tokens=51),
        dataclasses.replace(ask, temperature=0.6),
        dataclasses.replace(ask, seed=2),
        question(1, SCHEMA, text="\ud800"),
    ]
    assert len({ask.key(), *(other.key() for other in others)}) == 7
    assert dataclasses.replace(ask, temperature=1).key() == dataclasses.replace(ask, temperature=1.0).key()
    # As it has ever been: what a journal knows stays known.
    assert ask.key() == "f89ac04d84eb761ca3d3318acfe4db236a459494ab1c646a6212bca1ab8963a5"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000/v1"}, "is no address of a server"),
        ({"url": "ftp://host/v1"}, "is no address of a server"),
        ({"url": "http://me:secret@host:port/v1"}, "^host:port/v1: is no address"),
        ({"url": "me:hidden-word@host/v1"}, "^host/v1: is no address"),
        ({"url": "http://me:hidden/word@host/v1"}, "^host/v1: is no address"),
        ({"url": "http://[::1/v1"}, "is no address of a server"),
        ({"key": "sk-1\n2"}, "the key has characters that no key has"),
        ({"key": "sk-é"}, "the key has characters that no key has"),
        ({"concurrency": 0}, "concurrency: 0 must be more than 0"),
        ({"attempts": 0}, "attempts: 0"),
        ({"timeout": 0.0}, "timeout: 0.0"),
        ({"requests_per_minute": -1}, "requests_per_minute: -1"),
        ({"tokens_per_minute": 0}, "tokens_per_minute: 0"),
        ({"structured": "xml"}, "structured: 'xml' must be one of auto, schema, object, none"),
    ],
)
def test_what_makes_no_sense_is_said(options, words):
    with pytest.raises(ClaraError, match=words) as error:
        Endpoint(**{"url": "http://host/v1", "model": "small"} | options)
    assert "secret" not in str(error.value) and "sk-" not in str(error.value)


PART = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["text", "thinking", "image_url", 3]),
            "text": st.text() | st.none() | st.just({"value": 3}),
        }
    ),
    st.text(),
    st.integers(),
)


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.text(st.characters(exclude_categories=())), st.lists(PART), st.integers()), st.integers()
)
def test_any_content_and_any_usage(content, tokens):
    body = {"choices": [{"message": {"content": content}, "finish_reason": "length"}]}
    body["usage"] = {"prompt_tokens": tokens, "completion_tokens": tokens * 10**20}
    try:
        reply = Endpoint("http://127.0.0.1:1/v1", "m")._read(json.dumps(body).encode(), 10)
    except Exception as error:
        assert type(error).__name__ == "_RetryableError" and type(content) is int
        return
    reply.text.encode()
    assert 0 <= reply.prompt_tokens < 10**8 and 0 <= reply.completion_tokens < 10**8


def test_parts_of_content_are_read_by_their_texts():
    thinks = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    body = {
        "choices": [
            {"message": {"content": [thinks, {"type": "text", "text": {"value": "Pi"}}, {"text": "er "}, "4 \ud83d"]}}
        ]
    }
    reply = Endpoint("http://127.0.0.1:1/v1", "m")._read(json.dumps(body).encode(), 10)
    assert reply.text == "Pier 4 \ufffd"
