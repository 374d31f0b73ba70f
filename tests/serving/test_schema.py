"""Whatever the schema allows, and much that it does not, gets an answer that the schema describes."""

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi import checks

from clara_jax.serving.app import make_app
from clara_jax.serving.guard import Limits
from clara_jax.serving.worker import Worker
from tests.serving.fakes import FakeLibrary

library = FakeLibrary()
library.stored["a"] = "the cat sat on the mat"
worker = Worker(library, queue=8)
schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(worker, Limits(), 4))
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
    worker.end()


@schema.parametrize()
@hypothesis.settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_the_server_keeps_to_its_schema(case):
    response = case.call()
    if case.path == "/v1/chat/completions" and response.headers["content-type"][0].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")  # the schema describes the answer that is not streamed
        return
    case.validate_response(response, checks=CHECKS)
