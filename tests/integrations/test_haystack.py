"""Haystack runs the retriever in a pipeline of its form, and writes it down and reads it again."""

import pytest
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder

from clara_jax.errors import ClaraError
from clara_jax.integrations.haystack import ClaraRetriever
from tests.integrations.conftest import QUESTION


def made(places):
    """Return a pipeline of the retriever and a prompt of what it found."""
    whole = Pipeline()
    whole.add_component("retriever", ClaraRetriever(*places, top_k=2))
    template = "{% for one in documents %}{{ one.meta.rank }}: {{ one.content }}\n{% endfor %}"
    whole.add_component("prompt", PromptBuilder(template, required_variables=["documents"]))
    whole.connect("retriever.documents", "prompt.documents")
    return whole


@pytest.mark.parametrize("again", [False, True], ids=["made", "read again"])
def test_a_pipeline_reads_what_was_found(again, places, pipeline):
    whole = made(places)
    if again:
        whole = Pipeline.loads(whole.dumps(), allowed_modules=["clara_jax.integrations.haystack"])
    hits = pipeline.search(QUESTION, 2)
    prompt = whole.run({"retriever": {"query": QUESTION}})["prompt"]["prompt"]
    assert prompt == "".join(f"{hit.rank}: {hit.text}\n" for hit in hits)


def test_documents_are_the_hits(places, pipeline):
    found = ClaraRetriever(*places).run(QUESTION, top_k=3)["documents"]
    hits = pipeline.search(QUESTION, 3)
    assert all(isinstance(one, Document) for one in found)
    assert [(one.id, one.content, one.score) for one in found] == [(hit.id, hit.text, hit.score) for hit in hits]
    assert found[0].meta["document"] == hits[0].document


def test_a_missing_store_is_one_line(places, tmp_path):
    with pytest.raises(ClaraError, match="nowhere"):
        ClaraRetriever(places[0], tmp_path / "nowhere").run(QUESTION)
