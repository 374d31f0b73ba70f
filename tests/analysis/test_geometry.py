"""Statistics of shapes whose values are known."""

import base64
import json

import numpy as np
import pytest

from clara_jax.analysis import geometry
from clara_jax.memory_count import FIXED
from tests.tiny import document

RNG = np.random.default_rng(0)


def test_effective_rank():
    assert geometry.effective_rank(np.eye(4, 9)) == pytest.approx(4)
    assert geometry.effective_rank(np.outer([1, 2, 3, -1], RNG.normal(size=9))) == pytest.approx(1)
    assert geometry.effective_rank(np.diag([5.0, 5, 0, 0])) == pytest.approx(2)
    # Shares 3/4 and 1/4.
    assert geometry.effective_rank(np.diag([3.0, 1])) == pytest.approx(4 / 3**0.75)
    assert geometry.effective_rank(np.zeros((4, 9))) == 0


def test_distances():
    a, b = np.array([[3.0, 0], [0, 4]]), np.array([[0.0, 4], [0, -4], [3, 0]])
    np.testing.assert_allclose(geometry.distances(a, b), [[5, 5, 0], [0, 8, 5]])
    assert geometry.on_and_off_diagonal(np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])) == (5, 5)
    assert geometry.on_and_off_diagonal(np.array([[1.0, 6], [2, 3]])) == (2, 4)


def test_explained_variance():
    """Twice as far in one direction is four times the variance; where the cloud lies does not matter."""
    cloud = np.array([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]]) + 7
    np.testing.assert_allclose(geometry.explained(cloud, (1, 2, 10)), [0.8, 1, 1])
    assert np.isnan(geometry.explained(np.ones((3, 2)), (1,))).all()


def test_mixing():
    far = RNG.normal(size=(20, 5))
    assert geometry.mixing(far, far + 100) == 0
    assert geometry.mixing(far, far + 1e-3) == 1
    assert 0.35 < geometry.mixing(RNG.normal(size=(400, 2)), RNG.normal(size=(400, 2))) < 0.65


def test_states_are_the_memories_and_the_mean_of_the_text(clara):
    """Seven documents of different lengths in batches of four; one is cut."""
    documents = [document(i) for i in range(6)] + [" ".join(map(document, range(6)))]
    memories, texts = geometry.document_states(clara.bundle, documents, 4)
    with pytest.warns(UserWarning, match="lose their end"):
        expected = clara.compress(documents, long="cut").array
    np.testing.assert_array_equal(memories, expected)
    assert texts.shape == (7, 64) and len({row.tobytes() for row in texts}) == 7
    alone = geometry.document_states(clara.bundle, documents[2:3], 4)
    np.testing.assert_allclose(alone[1][0], texts[2], atol=1e-5)


@pytest.mark.parametrize("count", [geometry.LEAST, 40])
def test_the_section(count):
    memories = RNG.normal(size=(count, 4, 8)).astype(np.float32)
    texts = memories.mean(1) + 1e-3
    found = geometry.geometry_section(memories, texts, 0, FIXED)
    rows = {row[0]: row[1:] for row in found["table"]["rows"]}
    assert rows["share of documents whose nearest text is their own"][:2] == [1, pytest.approx(1 / count, rel=1e-3)]
    same, other, _ = rows["distance of a document's mean memory state from the mean state of its text"]
    assert same == pytest.approx(8**0.5 * 1e-3, rel=1e-3) and other > 0.5
    assert rows["effective rank of a document's 4 memory vectors"][0] > 3
    json.dumps(found, allow_nan=False)
    head, _, picture = found["picture"].partition(",")
    assert head == "data:image/svg+xml;base64" and b"PCA" in base64.b64decode(picture)
    assert geometry.geometry_section(memories, texts, 0, FIXED) == found
