"""LanceDB's import: what it leaves until later works when it is called, and nothing else is changed."""

import inspect

import pydantic
import pytest
from lance_namespace_urllib3_client.api.table_api import TableApi

from clara_jax.retrieval import lance


def test_pydantic_is_as_it_was():
    assert pydantic.validate_call is not lance._when_called
    assert pydantic.validate_call.__module__ == "pydantic.validate_call_decorator"


def test_a_call_that_waits_for_its_validator_validates():
    call = lance._when_called(_doubled)
    assert call("2") == 4 and call(number=4) == 8
    with pytest.raises(pydantic.ValidationError):
        lance._when_called(config={"strict": True})(_doubled)("2")


def test_the_remote_client_validates_when_it_is_called():
    assert "id" in inspect.signature(TableApi.count_table_rows).parameters
    with pytest.raises(pydantic.ValidationError):
        TableApi(api_client=object()).count_table_rows(id=["not", "a", "text"])


def _doubled(number: int) -> int:
    return 2 * number
