"""Whatever the schema allows, and much that it does not, gets an answer that the schema describes."""

import dataclasses
import typing

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi import checks

from clara_jax.results import Hit
from clara_jax.serving.guard import RequestLimits
from clara_jax.serving.store import store_app
from clara_jax.serving.text import text_app
from clara_jax.serving.worker import Worker
from tests.serving.fakes import FakeBaseLM, FakePipeline

pipeline = FakePipeline()
pipeline.stored["a"] = "the cat sat on the mat"
workers = [Worker(model, queue=8) for model in (pipeline, FakeBaseLM())]
store = schemathesis.openapi.from_asgi("/openapi.json", store_app(workers[0], RequestLimits()))
text = schemathesis.openapi.from_asgi("/openapi.json", text_app(workers[1], RequestLimits(), "base"))
SETTINGS = hypothesis.settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module", autouse=True)
def ended():
    yield
    for worker in workers:
        worker.end()


def test_a_chunk_on_the_wire_has_the_fields_of_a_hit():
    components = store_app(workers[0], RequestLimits()).openapi()["components"]["schemas"]
    types = {str: "string", int: "integer", float: "number"}
    chunk = components["Chunk"]
    hints = typing.get_type_hints(Hit) | {"score": float}  # what a store finds has one
    fields = {name: types[kind] for name, kind in hints.items()}
    assert {name: field["type"] for name, field in chunk["properties"].items()} == fields
    assert chunk["required"] == list(chunk["properties"]) == [field.name for field in dataclasses.fields(Hit)]
    assert chunk["type"] == "object" and "additionalProperties" not in chunk


@store.parametrize()
@SETTINGS
def test_the_server_of_a_store_keeps_to_its_schema(case):
    check(case)


@text.parametrize()
@SETTINGS
def test_the_server_of_a_base_keeps_to_its_schema(case):
    check(case)


def check(case):
    response = case.call()
    if case.path == "/v1/chat/completions" and response.headers["content-type"][0].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")  # the schema describes the answer that is not streamed
        return
    case.validate_response(response, checks=CHECKS)
