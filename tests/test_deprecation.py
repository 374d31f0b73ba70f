"""Old public names lead to the new ones, and warn where they are used."""

import importlib
import sys
import types
import warnings

import pytest

import clara_jax
from clara_jax.api import Clara
from clara_jax.deprecation import renamed_attributes, renamed_field, renamed_method
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import RagAnswer


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("clara_jax.rag_pipeline", "Library", "RagPipeline"),
        ("clara_jax.rag_pipeline", "LibraryAnswer", "RagAnswer"),
        ("clara_jax.rag_pipeline", "Asked", "RetrievedContext"),
        ("clara_jax.base_lm", "Plain", "BaseLM"),
        ("clara_jax.results", "Source", "Hit"),
        ("clara_jax.method.merging", "merge", "merge_adapter"),
        ("clara_jax.text.documents", "Document", "CorpusDocument"),
        ("clara_jax.retrieval.rows", "StoredChunk", "Chunk"),
        ("clara_jax.retrieval.document_store", "StoredChunk", "Chunk"),
    ],
)
def test_an_old_class_name_is_the_new_class(module, old, new):
    module = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now {module.__name__}.{new}") as caught:
        assert getattr(module, old) is getattr(module, new)
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_pipeline_is_exported_from_the_package():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clara_jax.RagPipeline is RagPipeline


def test_an_import_of_an_old_name_warns_at_its_line(monkeypatch):
    module = types.ModuleType("has_an_old_name")
    module.new, module.__getattr__ = 1, renamed_attributes("has_an_old_name", {"old": "new"})
    monkeypatch.setitem(sys.modules, "has_an_old_name", module)
    with pytest.warns(DeprecationWarning, match="has_an_old_name.old is now has_an_old_name.new") as caught:
        from has_an_old_name import old
    assert old == 1 and caught[0].filename == __file__


class Number:
    def __init__(self, value):
        self.value = value

    def plus(self, other, *, twice=False):
        """Return a sum."""
        return self.value + other * (1 + twice)

    add = renamed_method("Number.add", plus)
    number = renamed_field("Number.number", "value")


def test_an_old_method_calls_the_new_one():
    with pytest.warns(DeprecationWarning, match="Number.add is now Number.plus; the old name will go") as caught:
        assert Number(1).add(2, twice=True) == 5
    assert caught[0].filename == __file__
    for warned in (Clara.read, RagPipeline.cut, RagAnswer.asked):
        assert "this is its old name" in warned.__doc__


def test_an_old_field_reads_the_new_one():
    with pytest.warns(DeprecationWarning, match="Number.number is now Number.value") as caught:
        assert Number(7).number == 7
    assert caught[0].filename == __file__
