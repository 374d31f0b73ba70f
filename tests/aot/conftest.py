"""Programs that are read are those that users get, compiled for chips that are not there."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _as_users(optimized, uncached):
    pass
