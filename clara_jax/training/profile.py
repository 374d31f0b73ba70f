"""Traces of a window of steps by JAX's profiler."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax

from clara_jax.errors import ClaraError


class Profile:
    """A profile of the steps from the window's first number up to its second; without a window, of none."""

    def __init__(self, window: tuple[int, int] | None, directory: Path):
        self.window, self.directory, self.running = window, directory, False

    def at(self, index: int) -> None:
        """Start or end the trace where the window does; to be called before each step."""
        if self.window and not self.running and self.window[0] <= index < self.window[1]:
            jax.profiler.start_trace(self.directory)
            self.running = True
        elif self.window and self.running and index >= self.window[1]:
            self.close()

    def close(self) -> None:
        """End the trace if one is running, and say where it is."""
        if self.running:
            jax.profiler.stop_trace()
            self.running, self.window = False, None
            print(f"profile written to {self.directory}", file=sys.stderr, flush=True)

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def check_profiler() -> None:
    """Check that the profiler can run here.

    Raises:
      ClaraError: the profiler would end this process: JAX has loaded libtpu, which starts its own profiler with JAX's
        and crashes where it has found no TPU.
    """
    backend = jax.default_backend()
    asked = not platforms() or "tpu" in platforms()
    if asked and backend != "tpu" and importlib.util.find_spec("libtpu"):
        raise ClaraError(
            "config.reporting.profile: libtpu is installed, no TPU is there, and libtpu's profiler crashes without "
            f"one; set JAX_PLATFORMS={'cpu' if backend == 'cpu' else 'cuda,cpu'} in the environment"
        )


def platforms() -> str:
    """Return the platforms that JAX is set to use, as ``JAX_PLATFORMS`` has them; empty where nothing is set."""
    return jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue] - set at run time
