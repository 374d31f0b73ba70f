"""LangChain finds what the pipeline finds, in its form, from many threads."""

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from clara_jax.errors import ClaraError
from clara_jax.integrations.langchain import ClaraRetriever
from tests.integrations.conftest import QUESTION


def test_documents_are_the_hits(pipeline):
    found = ClaraRetriever(pipeline=pipeline, k=3).invoke(QUESTION)
    hits = pipeline.search(QUESTION, 3)
    assert all(isinstance(one, Document) for one in found)
    assert [(one.id, one.page_content) for one in found] == [(hit.id, hit.text) for hit in hits]
    first = found[0].metadata
    assert (first["document"], first["rank"], first["score"]) == (hits[0].document, 1, hits[0].score)
    assert first["title"] == hits[0].title and first["end"] > first["start"] == 0


def test_default_search_is_the_pipeline_s(pipeline):
    assert len(ClaraRetriever(pipeline=pipeline).invoke(QUESTION)) == pipeline.usual_k


def test_conditions_hold_and_bad_ones_are_named(pipeline):
    only = ClaraRetriever(pipeline=pipeline, k=3, where="document = 'notes/5.md'")
    assert {one.metadata["document"] for one in only.invoke(QUESTION)} == {"notes/5.md"}
    with pytest.raises(ClaraError, match="nothing_like_it"):
        ClaraRetriever(pipeline=pipeline, where="nothing_like_it = 1").invoke(QUESTION)


def ids(found: list[Document]) -> list[str | None]:
    return [one.id for one in found]


def test_a_chain_asks_many_at_once(pipeline):
    chain = ClaraRetriever(pipeline=pipeline, k=2, how="words") | RunnableLambda(ids)
    questions = [f"Where was number {i} born?" for i in range(6)] * 2

    async def ask():
        return await asyncio.gather(*map(chain.ainvoke, questions))

    expected = [[hit.id for hit in pipeline.search(question, 2, "words")] for question in questions]
    assert asyncio.run(ask()) == expected == chain.batch(questions)
