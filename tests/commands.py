"""Commands run in the process of the tests."""

import sys

from clara_jax import command, train


def run_train(monkeypatch, *arguments):
    """Run ``python -m clara_jax.train`` with these arguments in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["clara_jax.train", *map(str, arguments)])
    try:
        command.run(train.main)
    except SystemExit as stop:
        return stop.code
    return 0
