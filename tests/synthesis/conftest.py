"""What several of these tests read."""

import json

import pytest

from clara_jax.synthesis.checks import DocumentText
from tests.locations import shared_data


@pytest.fixture(scope="module")
def sample():
    """(document, question, answer) of real passages; a model wrote the answers."""
    rows = map(json.loads, (shared_data() / "scp_sample.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (document, *pair)
        for row in rows
        for document in [DocumentText(row["docs"][0])]
        for pair in zip(row["question"], row["answers"], strict=True)
    ]
