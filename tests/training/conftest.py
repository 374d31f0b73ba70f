"""What tests of training share."""

import jax
import pytest


@pytest.fixture(scope="module")
def one_device():
    """Runs take all devices; tests have eight fake ones."""
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *args: devices)
        yield
