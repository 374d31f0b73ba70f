"""A client of the Model Context Protocol searches, asks, adds, lists and deletes, in this process and in another."""

import asyncio
import os
import sys

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from clara_jax import command, mcp
from clara_jax.integrations.mcp_server import make_server
from clara_jax.rag_pipeline import RagPipeline
from tests.integrations.conftest import QUESTION
from tests.locations import ROOT
from tests.tiny import document


def calls(server, *wanted):
    """Return the results of calls, made by a client one after the other."""

    async def talk():
        async with Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in wanted]

    return asyncio.run(talk())


def listed(result):
    assert not result.is_error, result.content
    return result.structured_content


def test_tools_say_what_they_do(pipeline):
    async def talk():
        async with Client(make_server(pipeline)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(talk())}
    assert tools.keys() == {"search", "ask", "add", "list", "delete"}
    assert all(tool.description for tool in tools.values())
    reads = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
    assert reads == {"search", "ask", "list"}


def test_what_is_found_is_the_pipeline_s(pipeline):
    found, answered = calls(
        make_server(pipeline), ("search", {"question": QUESTION, "k": 3}), ("ask", {"question": QUESTION, "k": 2})
    )
    hits, answer = pipeline.search(QUESTION, 3), pipeline.answer(QUESTION, k=2, expand=1)
    rows = listed(found)["result"]
    assert [(row["id"], row["text"], row["rank"]) for row in rows] == [(hit.id, hit.text, hit.rank) for hit in hits]
    got = listed(answered)
    assert got["answer"] == answer.text and got["abstained"] is False
    assert [row["id"] for row in got["sources"]] == [hit.id for hit in answer.context.sources]


def test_documents_come_and_go(places, tmp_path, mesh):
    pipeline = RagPipeline.open(places[0], tmp_path / "store", create=True, mesh=mesh)
    added, found, there, again, gone, empty = calls(
        make_server(pipeline),
        ("add", {"text": document(3), "id": "b", "title": "Three"}),
        ("search", {"question": QUESTION}),
        ("list", {}),
        ("add", {"text": document(3), "id": "b", "title": "Three"}),
        ("delete", {"ids": ["b", "nobody"]}),
        ("list", {}),
    )
    assert listed(added) == {"chunks_compressed": 1, "chunks_unchanged": 0}
    assert [row["document"] for row in listed(found)["result"]] == ["b"]
    (row,) = listed(there)["documents"]
    assert (row["id"], row["title"], row["chunks"]) == ("b", "Three", 1)
    assert listed(again) == {"chunks_compressed": 0, "chunks_unchanged": 1}
    assert listed(gone) == {"deleted": 1} and listed(empty) == {"documents": [], "total": 0}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("search", {"question": " "}, "question"),
        ("search", {"question": QUESTION, "k": 0}, "k is 0; it must be from 1 to 100"),
        ("search", {"question": QUESTION, "where": "id = "}, "where"),
        ("ask", {"question": QUESTION, "k": 0}, "k is 0"),
        ("add", {"text": " ", "id": "a"}, "holds no text"),
        ("add", {"text": "Some.", "id": "a\nb"}, "control character"),
        ("list", {"limit": 0}, "limit is 0"),
    ],
)
def test_refusals_are_errors_of_the_call(name, arguments, said, pipeline):
    before = len(pipeline.store)
    (result,) = calls(make_server(pipeline), (name, arguments))
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert result.is_error and said in content.text and "Traceback" not in content.text
    assert len(pipeline.store) == before


def test_a_client_starts_the_command(places, tmp_path):
    """Over pipes, where anything but the protocol on standard output would end the conversation."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "clara_jax.mcp", "--checkpoint", str(places[0]), "--store", str(tmp_path / "store")],
        env=dict(os.environ),
        cwd=str(ROOT),
    )
    added, answered = calls(
        server, ("add", {"text": document(3), "id": "b"}), ("ask", {"question": QUESTION, "expand": 0})
    )
    assert listed(added)["chunks_compressed"] == 1
    assert [row["document"] for row in listed(answered)["sources"]] == ["b"]


def test_a_missing_store_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clara_jax.mcp"])
    with pytest.raises(SystemExit, match="2"):
        command.run(mcp.main, compiles=False)
    assert capsys.readouterr().err.startswith("error: --store: is missing")
