"""Requests of clients that err or mean harm, over real sockets, to every route of both servers.

None ends in a status of 500 or above, nothing is logged as an error, every refusal is one line in OpenAI's form, and
the server answers a good question afterwards. `tests/serving/test_schema.py` varies what the schema describes; this is
the rest: bytes, numbers, methods, headers and lengths that no client library sends. The fast test tries some, the drill
a thousand of each server: ``python -m pytest -n 0 -m drill tests/drills/test_hostile_requests.py``.
"""

import collections
import gzip
import http.client
import json
import logging
import random
import socket

import httpx
import pytest

from clara_jax import strict_json
from clara_jax.serving.guard import LOOPBACK
from clara_jax.serving.store import store_app
from clara_jax.serving.text import text_app
from tests.drills.test_hostile_files import changed
from tests.serving.fakes import FakeBaseLM, FakePipeline, serve

QUESTION = {"messages": [{"role": "user", "content": "where is the cat"}]}
CHAT = QUESTION | {"model": "clara", "stream": False, "temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 9}
CHAT |= {"stop": ["x"], "k": 2, "how": "words", "expand": 0, "candidates": 4, "where": None, "abstain_below": 0.1}
CHAT |= {"stream_options": {"include_usage": True}, "tools": None, "logit_bias": None, "response_format": None}
DOCUMENTS = {"documents": [{"id": "a", "text": "the cat sat", "title": "T", "source": "S"}]}
SEARCH = {"question": "the cat", "k": 2, "how": "memory", "where": None}
POSTS = {
    "/v1/chat/completions": CHAT,
    "/v1/search": SEARCH,
    "/v1/rank": {"question": "the cat", "documents": ["a cat", "a dog"]},
    "/v1/documents": DOCUMENTS,
}
GETS = ["/", "/health", "/metrics", "/v1/models", "/v1/models/clara", "/v1/documents", "/openapi.json", "/nothing"]
GETS += ["/v1/files", "/v1/files/a.txt"]
# Files that are sent, by suffix; much of what is in them is broken.
FILES = {".txt": b"The ferry leaves.", ".jsonl": b'{"id": "a", "text": "One."}\n{"text": 7}\n', ".csv": b"a,b\n1,2\n"}
FILES |= {
    ".pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n",
    ".html": b"<p>The ferry leaves.<script>x</script>",
}
FILES |= {".docx": b"PK\x03\x04 no archive", ".png": b"\x89PNG", ".txt.gz": gzip.compress(b"x" * 99), "": b"x"}
# As JSON text: much of it is what no encoder writes.
VALUES = ["null", "true", "0", "-1", "0.5", "1e999", "-1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, "1e-400"]
VALUES += ["{}", "[]", "[null]", '""', '" "', '"\\u0000"', '"\\ud800"', '"x\\udfff"']
VALUES += ['"\\ud83d\\ude00"', '"a\\n\\u2028"']
VALUES += [str(2**63), str(-(2**63)), str(2**31), '"1"', '"١"', "[" * 3000, "[" * 3000 + "]" * 3000, "[[[[1]]]]"]
VALUES += ['{"a":' * 500 + "1" + "}" * 500, '"' + "x" * 70_000 + '"', "[" + "1," * 9000 + "1]", '{"a":1,"a":2}', "'a'"]
VALUES += ["tru", '"1=1; drop table chunks"', '"{{ 7 * 7 }}"', '"../../etc/passwd"', '"%n"']
VALUES += ['"\u202e\u200b"', '"\\x"', ""]
KEYS = ["", "a\nb", "\ud800", "__class__", "x" * 5000, "messages", "where", "💥", "$ref", "tools", "functions"]
METHODS = [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"get", b"FOO"]
TYPES = ["text/plain", "", "application/xml", "multipart/form-data", "application/x-www-form-urlencoded", "a" * 3000]
TYPES += ["application/json; charset=utf-16", "application/json;charset=x", "APPLICATION/JSON", "application/ld+json"]
PLACES = ["%00", "%ff%fe", "..%2f..%2fetc%2fpasswd", "a%0Ab", "%ED%A0%80", "x" * 9000, "%zz", "?", "a?b#c", "//", "'"]
QUERIES = ["offset=-1", "limit=0", "offset=NaN", "limit=1e9", "offset=" + "9" * 400, "limit=%00", "offset=1&offset=2"]
QUERIES += ["limit[]=1", "offset=\ufffd", "=", "&&&", "limit=" + "1" * 5000, "offset=١", "limit=2.5", "offset=%F0%9F"]
HEADERS = [
    ("Host", "evil.example"), ("Host", "["), ("Host", ""), ("Host", "a" * 5000), ("Origin", "http://["),
    ("Origin", "null"), ("Origin", "\xff\xfe"), ("Authorization", "Bearer"), ("Authorization", "Basic \xe9"),
    ("Authorization", "Bearer " * 999), ("Accept", "application/xml"), ("Accept-Encoding", "nothing"),
    ("Content-Encoding", "gzip"), ("Range", "bytes=9-1"), ("If-None-Match", "*"), ("Expect", "100-continue"),
    ("Expect", "the unexpected"), ("Upgrade", "websocket"), ("Connection", "Upgrade, close"),
    ("Cookie", "a=" + "b" * 4000), ("X-Long", "y" * 30_000), ("X-Bytes", "\x80\xff"), ("X-Forwarded-For", "'; --"),
    ("Access-Control-Request-Method", "\xff"), ("Content-Type", "application/json, text/html"),
]  # fmt: skip
# Lengths that HTTP itself forbids, or that leave open where a request ends: the reader of HTTP refuses some in its
# words, before there is a request.
LENGTHS = [("Content-Length", "-1"), ("Content-Length", "9" * 40), ("Content-Length", "abc"), ("Content-Length", "١")]
LENGTHS += [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip, chunked"), ("Transfer-Encoding", "nothing")]


def replaced(body, rng):
    """The JSON text of a body in which one value, anywhere, is another; or has a key more."""
    whole = json.loads(json.dumps(body))
    places, waiting = [], [whole]
    while waiting:
        container = waiting.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            places.append((container, key))
            waiting += [value] if isinstance(value, dict | list) else []
    where, key = rng.choice(places)
    if isinstance(where, dict) and rng.random() < 0.15:
        key = rng.choice(KEYS)
    where[key] = "PLACE"
    return json.dumps(whole).encode().replace(b'"PLACE"', rng.choice(VALUES).encode(errors="surrogatepass"))


def hostile(rng):
    """A request.

    Returns:
      its kind, method, path, headers and body, and whether the client sends all of it.
    """
    kinds = ("value", "value", "bytes", "utf-8", "type", "method", "path", "header", "length", "cut", "file")
    kind = rng.choice(kinds)
    path, method, headers, whole = rng.choice(list(POSTS)), b"POST", [("Content-Type", "application/json")], True
    body = json.dumps(POSTS[path]).encode()
    match kind:
        case "value":
            body = replaced(POSTS[path], rng)
        case "bytes":
            body = changed(body, rng)
        case "utf-8":
            at = rng.randrange(len(body))
            wrong = rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x00", b"\xf4\x90\x80\x80"))
            body = body[:at] + wrong + body[at:]
            body = rng.choice((body, body.decode("latin-1").encode("utf-16"), b"\xef\xbb\xbf" + body, b""))
        case "type":
            headers = [("Content-Type", rng.choice(TYPES))]
            body = rng.choice((body, gzip.compress(body), b"a=b&c=d", b"--x\r\n\r\n--x--"))
        case "method":
            method, path = rng.choice(METHODS), rng.choice([*POSTS, *GETS])
        case "path":
            method = rng.choice((b"GET", b"DELETE", b"POST"))
            path = rng.choice(
                (
                    f"/v1/documents/{rng.choice(PLACES)}",
                    f"/v1/models/{rng.choice(PLACES)}",
                    f"/v1/documents?{rng.choice(QUERIES)}",
                    f"/{rng.choice(PLACES)}",
                    f"{path}/",
                    f"{path}?{rng.choice(QUERIES)}",
                )
            )
            body = body if method == b"POST" else b""
        case "header":
            if rng.random() < 0.3:
                method, path, body = b"GET", rng.choice(GETS), b""
            headers += rng.sample(HEADERS, rng.randint(1, 4)) * rng.choice((1, 1, 1, 20))
        case "length":
            headers += [rng.choice(LENGTHS)]
            body = rng.choice((body, b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffff\r\n", b""))
        case "file":
            method, suffix = rng.choice((b"PUT", b"PUT", b"PUT", b"POST")), rng.choice(list(FILES))
            path = f"/v1/files/{rng.choice([*PLACES, 'a', 'b%2Fc'])}{suffix}"
            body = rng.choice((FILES[suffix], changed(FILES[suffix], rng), b"", b"\0" * 999))
            headers = [("Content-Type", rng.choice(TYPES))]
        case "cut":
            body, whole = body[: rng.randrange(len(body))], False
    return kind, method, path, headers, body, whole


def sent(url, request):
    """The server's answer: status, headers and body; None where it closed the connection without one."""
    kind, method, path, headers, body, whole = request
    names = [name for name, _ in headers]
    fixed = [] if "Host" in names else [("Host", url.removeprefix("http://"))]
    fixed += [] if "Authorization" in names else [("Authorization", "Bearer secret")]
    if kind != "length":
        fixed += [("Content-Length", str(len(body) + (0 if whole else 40)))]
    head = b"".join(f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in [*fixed, *headers])
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as client:
        try:
            client.sendall(method + b" " + path.encode() + b" HTTP/1.1\r\n" + head + b"\r\n" + body)
            if kind == "length" or not whole:
                client.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # refused before it was all sent: there may be an answer
        response = http.client.HTTPResponse(client, method=method.decode().upper())
        try:
            response.begin()
            return response.status, response.headers, response.read()
        except (ConnectionError, http.client.RemoteDisconnected):
            return None


def check(request, answer):
    """What became of a request: "answered", "refused", "refused as HTTP" or "left"."""
    kind, method, _, headers, *_ = request
    if answer is None:
        # Headers of more than 64 KiB are refused while the client still sends, who may see a reset connection alone.
        large = sum(len(value) for _, value in headers) > 1 << 16
        assert kind in ("length", "cut") or large, "no answer"
        return "left"
    status, headers, body = answer
    assert status < 500 and b"Traceback" not in body
    if body == b"Invalid HTTP request received.":
        assert status == 400 and kind in ("length", "header", "path", "method")
        return "refused as HTTP"
    if method == b"HEAD" or status in (204, 307):
        assert not body
        return "refused" if status >= 400 else "answered"
    form = headers.get_content_type()
    if status < 400:
        if form == "text/event-stream":
            assert body.endswith(b"data: [DONE]\n\n")
        elif form == "application/json":
            strict_json.parse(body)
        else:
            assert (form, status) in (("text/html", 200), ("text/plain", 200))
        return "answered"
    assert form == "application/json"
    (error,) = strict_json.parse(body).values()
    assert set(error) == {"message", "type", "param", "code"} and error["type"].endswith("_error")
    assert 0 < len(error["message"]) < 2000 and error["message"].isprintable()
    return "refused"


def try_requests(served, count, seed, errors):
    """How many of each kind came to what."""
    rng, found = random.Random(seed), collections.Counter()
    for number in range(count):
        request = hostile(rng)
        try:
            answer = sent(served.url, request)
            found[request[0], check(request, answer)] += 1
        except Exception as error:
            shown = [str(part)[:600] for part in (*request, answer)]
            raise AssertionError(f"number {number} of seed {seed}: {shown}") from error
        assert not errors(), (number, seed, request[:3])
        if number % 20 == 0:
            good(served)
    return found


def good(served):
    response = httpx.post(f"{served.url}/v1/chat/completions", json=QUESTION, headers=KEY, timeout=20)
    assert response.status_code == 200 and "where is the cat" in response.text


KEY = {"authorization": "Bearer secret"}


@pytest.fixture(params=["store", "base", "store with a key"])
def served(request):
    limits = {"body_seconds": 1.0, "request_seconds": 20}
    if request.param == "store with a key":
        limits |= {"key": "secret", "hosts": LOOPBACK}
    if request.param == "base":
        server = serve(FakeBaseLM(), app=lambda worker, limits: text_app(worker, limits, "base"), **limits)
    else:
        pipeline = FakePipeline()
        pipeline.stored["a"] = "the cat sat on the mat"
        server = serve(pipeline, app=store_app, **limits)
    yield server
    server.end()


def tried(served, count, caplog):
    def errors():
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]

    with caplog.at_level(logging.WARNING):
        found = try_requests(served, count, 21, errors)
    good(served)
    assert served.worker.inside == 0 and served.worker.alive
    return found


def test_some_requests(served, caplog):
    found = tried(served, 100, caplog)
    assert sum(count for (_, came), count in found.items() if came == "refused") > 30


@pytest.mark.drill
def test_a_thousand_requests(served, caplog):
    found = tried(served, 1000, caplog)
    sums = collections.Counter()
    for (_, came), count in found.items():
        sums[came] += count
    print(f"\n{sum(sums.values())} requests: {dict(sums)}")
    assert len({kind for kind, _ in found}) == 10
