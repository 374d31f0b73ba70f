"""A store of a few documents with a tiny model, as any of the tools would open it."""

import os

import pytest

from clara_jax.rag_pipeline import RagPipeline
from clara_jax.text.documents import CorpusDocument
from tests.test_rag_pipeline import write_checkpoint
from tests.tiny import document

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before Haystack is imported
QUESTION = "Where was number 3 born?"


@pytest.fixture(scope="package")
def places(tmp_path_factory, mesh):
    """Return a checkpoint and a store that was made with it."""
    folder = tmp_path_factory.mktemp("integrations")
    checkpoint = write_checkpoint(folder, mesh)
    pipeline = RagPipeline.open(checkpoint, folder / "store", create=True, mesh=mesh)
    pipeline.add([CorpusDocument(f"notes/{i}.md", f"Number {i}", document(i), f"notes/{i}.md") for i in range(6)])
    pipeline.finish()
    return checkpoint, folder / "store"


@pytest.fixture(scope="package")
def pipeline(places, mesh):
    return RagPipeline.open(*places, mesh=mesh)
