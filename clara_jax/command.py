"""What all commands share: a user's mistake is one line on standard error, and the exit code says so."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clara_jax.errors import ClaraError


def run(main: Callable[[], None]) -> None:
    """Calls ``main``; a `ClaraError` becomes ``error: ...`` and exit code 2, an interrupt exit code 130."""
    try:
        main()
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
