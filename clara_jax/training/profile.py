"""A window of steps that JAX's profiler records."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax

from clara_jax.errors import ClaraError


class Profile:
    """Records the steps from the first number up to the second; without a window, nothing."""

    def __init__(self, window: tuple[int, int] | None, directory: Path):
        self.window, self.directory, self.running = window, directory, False

    def at(self, index: int) -> None:
        """Called before each step."""
        if self.window and not self.running and self.window[0] <= index < self.window[1]:
            jax.profiler.start_trace(self.directory)
            self.running = True
        elif self.running and index >= self.window[1]:
            self.close()

    def close(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running, self.window = False, None
            print(f"profile written to {self.directory}", file=sys.stderr, flush=True)

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def check_profiler() -> None:
    """
    Raises:
      ClaraError: the profiler would end this process: JAX has loaded libtpu, which starts its own profiler with JAX's
        and crashes where it has found no TPU.
    """
    backend = jax.default_backend()
    asked = not platforms() or "tpu" in platforms()
    if asked and backend != "tpu" and importlib.util.find_spec("libtpu"):
        raise ClaraError(
            "config.profile: libtpu is installed, no TPU is there, and libtpu's profiler crashes without one; "
            f"set JAX_PLATFORMS={'cpu' if backend == 'cpu' else 'cuda,cpu'} in the environment"
        )


def platforms() -> str:
    """Where JAX was told to look for devices; empty where nobody said."""
    return jax.config.jax_platforms or ""
