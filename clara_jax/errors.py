"""The exceptions whose messages are for users, and how users are warned."""

import difflib
import sys
from collections.abc import Iterable

_LONGEST = 1600  # characters of a message


class ClaraError(Exception):
    """A problem the user can fix; the message is one line: where it is (file, line, field) and what to do about it.

    Commands print it as ``error: <message>`` on standard error and exit with code 2, without a traceback. Messages may
    quote untrusted files: of more than 1,600 characters the middle is left out, for the place is at the beginning and
    the remedy at the end.
    """

    def __init__(self, message: str):
        line = " ".join(str(message).split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST - 600]} ... {line[-595:]}"
        super().__init__(line)


class ClaraWarning(UserWarning):
    """What a user should know of a result; commands print it as one line, ``warning: <message>``."""


class ReportedByMainError(ClaraError):
    """A problem that the main process has found and printed; the other processes end with this error."""


def nearest_name(given: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelled most like a given one, or None where none is near."""
    return next(iter(difflib.get_close_matches(given, list(known), 1)), None)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or nothing where none is near."""
    near = nearest_name(given, known)
    return f"; did you mean {near}?" if near else ""


def warn_line(message: str) -> None:
    """Print a warning for the user of a command: one line on standard error."""
    print(f"warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
