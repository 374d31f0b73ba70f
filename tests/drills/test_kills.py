"""SIGKILL at random moments of training and compression: what comes out equals what was never disturbed.

The fast tests kill once or twice (`tests/test_resume.py`, `tests/test_rag_pipeline.py`); the drills twenty times:
``python -m pytest -n 0 -m drill tests/drills/test_kills.py``.
"""

import pytest

from tests.test_rag_pipeline import killed_compression, write_checkpoint
from tests.test_resume import CONFIG, killed_at_random_moments
from tests.tiny import write_place


@pytest.mark.slow
@pytest.mark.drill
def test_a_compression_killed_twenty_times(tmp_path, mesh):
    killed_compression(write_checkpoint(tmp_path, mesh), tmp_path, kills=20, documents=400)


@pytest.mark.drill
def test_a_training_of_four_stages_killed_twenty_times(tmp_path):
    stages = "scp+instruct+retrieval+end_to_end"
    ended = killed_at_random_moments(write_place(tmp_path, CONFIG), stages, 20, cache=True)
    print(f"\n20 kills; {ended} times the run had come to its end first, and was begun anew")


@pytest.mark.drill
@pytest.mark.parametrize("stage", ["instruct", "retrieval"])
def test_a_stage_that_compiles_killed_ten_times(stage, tmp_path):
    """The other two are among the slow tests."""
    killed_at_random_moments(write_place(tmp_path, CONFIG), stage, 10, cache=False)
