"""Files that are sent to the server: the readers of folders, ids, limits, and what cannot be read in one line."""

import http.client
import threading
import time
from urllib.parse import quote

import httpx
import pytest

from clara_jax.data.corpus.files import KINDS
from clara_jax.serving.quotes import quotes, sentences
from tests.data.corpus import pdf, word
from tests.serving.fakes import FakePipeline, serve

LATIN = "Das Mädchen aß Äpfel und Öl floß über die Straße, während die Vögel sangen. "
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def served():
    server = serve(FakePipeline(), file=1 << 16, body=1 << 15, key="secret")
    yield server
    server.end()


def put(served, name, content, **options):
    return httpx.put(f"{served.url}/v1/files/{quote(name, safe='')}", content=content, headers=KEY, **options)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("notes/a b&?.md", b"# Title\n\nThe ferry leaves.", "The ferry leaves."),
        ("../up/../etc/passwd.txt", b"It names no file.", "It names no file."),
        ("paper.pdf", pdf([["The paper has a text."]]), "The paper has a text."),
        ("deep/letter.DOCX", word(["Dear Ada."]), "Dear Ada."),
        ("latin.txt", LATIN.encode("cp1252") * 5, "Straße"),
    ],
)
def test_files_of_every_kind_become_documents_by_their_names(served, name, content, text):
    body = put(served, name, content, timeout=120).raise_for_status().json()
    assert (body["ids"], body["documents"], body["skipped"]) == ([name], 1, [])
    assert text in served.pipeline.stored[name]
    assert ("encoding was guessed" in body["note"]) == (name == "latin.txt")


def test_lines_that_cannot_be_read_are_named_and_the_others_go_in(served):
    lines = b'{"id": "L1", "text": "One."}\n{"text": 7}\n{"text": "Two."}\nno\n'
    body = put(served, "l.jsonl", lines).raise_for_status().json()
    assert body["ids"] == ["L1", "l.jsonl:3"] and body["skipped_count"] == 2
    assert [(one["place"], one["reason"][:20]) for one in body["skipped"]] == [
        ("l.jsonl:2", '"text" is a number; '),
        ("l.jsonl:4", body["skipped"][1]["reason"][:20]),
    ]
    sent = put(served, "half.jsonl", b'{"id": "half", "text": "\\ud83d"}')  # half of a pair, in one line of a file
    assert sent.status_code == 400 and sent.json()["error"]["message"].startswith("half.jsonl:1: ")


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("photo.png", b"x", 400, "photo.png: is of no known kind; it must be one of "),
        ("a.txt.gz", b"x", 400, "a.txt.gz: compressed files are not read here"),
        ("a.txt", b"", 400, "a.txt: holds no text"),
        ("a.pdf", b"%PDF-1.4 nothing", 400, "a.pdf: is no PDF that can be read"),
        ("a\tb.txt", b"x", 400, "a document: the id 'a\\tb.txt' must be"),
        ("a.txt", b"x " * (1 << 14) + b"y", 400, "a.txt: holds more than 32,768 characters of text; divide it"),
        ("a.txt", b"x" * (1 << 16) + b"y", 413, "the request is larger than 65,536 bytes"),
        ("x" * 600 + ".txt", b"x", 422, "name: "),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(served, name, content, status, message):
    before = dict(served.pipeline.stored)
    response = put(served, name, content)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"].startswith(message) and served.pipeline.stored == before


def test_the_key_is_needed_before_anything_is_sent(served):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=20)
    connection.putrequest("PUT", "/v1/files/a.txt")
    connection.putheader("content-length", "1000")
    connection.endheaders()  # and no body
    assert connection.getresponse().status == 401
    assert httpx.get(f"{served.url}/v1/files").status_code == 401
    kinds = httpx.get(f"{served.url}/v1/files", headers=KEY).json()
    assert kinds == {"suffixes": list(KINDS), "most_bytes": 1 << 16, "most_characters": 1 << 15}


def test_only_two_files_are_inside_at_one_time(served):
    connections = [http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=20) for _ in range(2)]
    for number, connection in enumerate(connections):
        connection.putrequest("PUT", f"/v1/files/slow{number}.txt")
        connection.putheader("content-length", "4")
        connection.putheader("authorization", "Bearer secret")
        connection.endheaders(b"ab")  # the rest is not there yet
    time.sleep(0.5)
    refused = put(served, "third.txt", b"x")
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    for connection in connections:
        connection.send(b"cd")
        assert connection.getresponse().status == 200
    assert put(served, "third.txt", b"x").status_code == 200


def test_a_reading_that_takes_long_holds_up_no_answer():
    server = serve(FakePipeline(), request_seconds=1.0)
    server.pipeline.stored["a"] = "the cat sat"
    going = threading.Event()

    def read_files(files, report, longest):
        going.wait(20)
        yield from FakePipeline.read_files(server.pipeline, files, report, longest)

    server.pipeline.read_files = read_files
    try:
        first = httpx.put(f"{server.url}/v1/files/a.txt", content=b"x", timeout=20)
        assert first.status_code == 504
        asked = {"messages": [{"role": "user", "content": "where is the cat"}]}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=20).status_code == 200
        # The reading goes on, and others wait for it: they do not pile up.
        assert httpx.put(f"{server.url}/v1/files/b.txt", content=b"x", timeout=20).status_code == 504
        assert sum(thread.name == "clara-upload" for thread in threading.enumerate()) == 1
        going.set()
        for _ in range(100):
            if httpx.put(f"{server.url}/v1/files/c.txt", content=b"x", timeout=20).status_code == 200:
                break
        assert "c.txt" in server.pipeline.stored
    finally:
        going.set()
        server.end()


def test_documents_are_found_by_a_part_of_their_names(served):
    put(served, "notes/Ärger.txt", b"x").raise_for_status()
    found = httpx.get(f"{served.url}/v1/documents", params={"containing": "ärger"}, headers=KEY).json()
    assert [one["id"] for one in found["documents"]] == ["notes/Ärger.txt"] and found["total"] == 1


def test_sentences_headings_and_lists_are_told_apart():
    text = "Title\n\n# Heading\n\nOne stands here. Two goes\non here.\n\n- an item\n- another item"
    found = [text[start:end] for start, end in sentences(text)]
    assert found == ["Title", "# Heading", "One stands here.", "Two goes\non here.", "- an item", "- another item"]
    assert list(sentences("")) == list(sentences(" \n\n ")) == []


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("In which year was the club founded?", "1962", ("The club was founded in 1962 by Edith.", True)),
        ("Who founded the club?", "Edith", ("The club was founded in 1962 by Edith.", True)),
        ("What do members pay?", "nothing at all", ("Members pay 85 dollars a year.", False)),
        ("Where is Oslo?", "in Norway", None),
        ("Where is Oslo?", "", None),
    ],
)
def test_the_sentence_that_supports_an_answer_is_quoted(question, answer, expected):
    text = "# The club\n\n😀 It is old. The club was founded in 1962 by Edith. Members pay 85 dollars a year."
    texts = [text, "The weather is fine. It was founded on sand.", ""]
    (found, *_, empty) = quotes(texts, question, answer)
    assert empty is None
    assert (None if found is None else (text[found.start : found.end], found.answers)) == expected
