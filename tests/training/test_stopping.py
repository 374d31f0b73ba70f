"""The first signal is a wish, granted when there is something to save; the second is an interrupt."""

import os
import signal

import pytest

from clara_jax.training.stopping import Stopped, StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_while_it_is_deferred(number, capsys):
    with StopSignal().listening() as stop:
        with stop.deferred():
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
        assert signal.Signals(number).name in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_with_nothing_to_save_a_signal_stops_at_once():
    with StopSignal().listening():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
