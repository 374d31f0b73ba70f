"""The exceptions a user is meant to read."""

_LONGEST = 1600  # characters of a message


class ClaraError(Exception):
    """A problem the user can fix, said in one line: where it is (file, line, field) and what to do about it.

    Commands print it as ``error: <message>`` on standard error and exit with code 2, without a traceback. They
    quote what a stranger's file holds, however long that is: of more than 1,600 characters the middle is left out, for
    where it is stands at the beginning, and what to do at the end.
    """

    def __init__(self, message: str):
        line = " ".join(str(message).split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST - 600]} ... {line[-595:]}"
        super().__init__(line)


class ToldByMain(ClaraError):
    """A problem that the main one of several processes has found, and alone prints: the others end for it, too."""
