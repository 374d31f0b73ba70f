"""Near-duplicates: found as brute force finds them, and nothing else."""

import random

import numpy as np
import pytest

from clara_jax.data.corpus.duplicates import MISSED, PERMUTATIONS, SHINGLE, Duplicates, bands, jaccard, signature
from clara_jax.errors import ClaraError

VOCABULARY = [f"word{i}" for i in range(500)]


def text(rng, length=120):
    return " ".join(rng.choices(VOCABULARY, k=length))


def changed(rng, original, times):
    words = original.split()
    for place in rng.sample(range(len(words)), times):
        words[place] = "changed"
    return " ".join(words)


def shingles(text):
    words = text.split()
    return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def test_similarity_is_that_of_the_sets():
    rng = random.Random(0)
    first = text(rng)
    for times in (0, 1, 3, 10, 60):
        second = changed(rng, first, times)
        a, b = shingles(first), shingles(second)
        found = jaccard(signature(first).shingles, signature(second).shingles)
        assert found == pytest.approx(len(a & b) / len(a | b))


def test_what_counts_as_equal():
    base = signature("The ferry, sails to Ulm Island.")
    assert signature(" The ferry,\n sails to  Ulm Island. ").digest == base.digest
    assert signature("the FERRY sails to Ulm island").digest != base.digest
    assert np.array_equal(signature("the FERRY sails to Ulm island").shingles, base.shingles)
    assert len(signature("東京タワーは高い").shingles) == 4
    assert len(signature("---").shingles) == 0 and signature("---").minhash is None


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_as_brute_force(threshold):
    rng = random.Random(1)
    originals = [text(rng) for _ in range(40)]
    texts = originals + [
        changed(rng, rng.choice(originals), rng.choice([0, 0, 1, 1, 2, 3, 5, 8, 12])) for _ in range(160)
    ]
    duplicates, kept, pairs, missed = Duplicates(threshold), [], 0, 0
    for number, item in enumerate(texts):
        match = duplicates.add(f"c{number}", signature(item))
        sets = shingles(item)
        similar = {other: len(sets & of) / len(sets | of) for other, of in kept}
        best = max(similar.values(), default=0)
        pairs, missed = pairs + (best >= threshold), missed + (best >= threshold and match is None)
        if match:  # never by chance: with the one it is most like, the first of several
            assert match.similarity == pytest.approx(best) and best >= threshold
            assert match.id == next(f"c{other}" for other, value in similar.items() if value == best)
            assert match.exact == any(texts[other] == item for other, _ in kept)
        else:
            kept.append((number, sets))
    assert pairs > 20 and missed <= 1 + pairs * MISSED


def test_texts_without_words_are_compared_whole():
    duplicates = Duplicates(0.8)
    assert duplicates.add("a", signature("***")) is None
    assert duplicates.add("b", signature("---")) is None
    assert duplicates.add("c", signature(" ---\n")) == ("b", 1.0, True)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_leave_few_unseen(threshold):
    count, rows = bands(threshold)
    assert count >= 2 and count * rows <= PERMUTATIONS
    if threshold > 0.1:
        assert (1 - threshold**rows) ** count <= MISSED


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_thresholds_are_checked(threshold):
    with pytest.raises(ClaraError, match="--near-duplicates: .* must be above 0 and at most 1, or off"):
        Duplicates(threshold)
