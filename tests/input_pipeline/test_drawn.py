"""Which records a limit leaves."""

from clara_jax.input_pipeline.drawn import drawn


def test_a_draw_is_of_the_whole_file_and_always_the_same():
    records = list(range(1000, 2000))
    some = drawn(records, 40)
    assert some == drawn(records, 40) == drawn(records, 200)[:40] and len(set(some)) == 40
    # Each fifth of the file has about a fifth of 200: the first ones would all be in the first.
    counts = [sum(start <= one < start + 200 for one in drawn(records, 200)) for start in range(1000, 2000, 200)]
    assert min(counts) >= 25 and sum(counts) == 200
    assert sorted(drawn(records, 5000)) == records == drawn(records, None)
    assert drawn([], 3) == []
