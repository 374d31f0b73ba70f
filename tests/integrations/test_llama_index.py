"""LlamaIndex retrieves, answers and reads files as the pipeline does."""

import asyncio

import pytest
from llama_index.core.base.response.schema import Response

from clara_jax.errors import ClaraError
from clara_jax.integrations.llama_index import ClaraQueryEngine, ClaraReader, ClaraRetriever
from tests.integrations.conftest import QUESTION
from tests.tiny import document


def test_nodes_are_the_hits(pipeline):
    found = ClaraRetriever(pipeline, k=3).retrieve(QUESTION)
    hits = pipeline.search(QUESTION, 3)
    assert [(one.node_id, one.text, one.score) for one in found] == [(hit.id, hit.text, hit.score) for hit in hits]
    assert found[0].metadata["document"] == hits[0].document


def test_answers_name_their_sources(pipeline):
    engine = ClaraQueryEngine(pipeline=pipeline, options={"k": 2})
    expected = pipeline.answer(QUESTION, k=2)
    for response in (engine.query(QUESTION), asyncio.run(engine.aquery(QUESTION))):
        assert str(response) == expected.text
        assert [one.node_id for one in response.source_nodes] == [hit.id for hit in expected.context.sources]


def test_a_model_that_abstains_answers_nothing(pipeline):
    engine = ClaraQueryEngine(pipeline=pipeline, options={"how": "memory", "abstain_below": 1.0})
    response = engine.query(QUESTION)
    assert isinstance(response, Response) and response.response == ""  # which LlamaIndex prints as "None"


def test_files_are_read_in_chunks_of_the_model(pipeline, tmp_path):
    (tmp_path / "notes").mkdir()
    for i in range(2):
        (tmp_path / "notes" / f"{i}.md").write_text(" ".join(document(j) for j in range(20 * i, 20 * i + 20)))
    read = ClaraReader(pipeline).load_data([str(tmp_path / "notes")])
    expected = [chunk for each in pipeline.read([str(tmp_path / "notes")]) for chunk in each.chunks]
    assert [(one.doc_id, one.text) for one in read] == [(chunk.id, chunk.text) for chunk in expected]
    assert {one.metadata["document"] for one in read} == {"0.md", "1.md"} and len(read) > 4
    with pytest.raises(ClaraError, match="nowhere"):
        ClaraReader(pipeline).load_data([str(tmp_path / "nowhere")])
