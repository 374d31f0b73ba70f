"""The exceptions a user is meant to read."""


class ClaraError(Exception):
    """A problem the user can fix, said in one line: where it is (file, line, field) and what to do about it.

    Commands print it as ``error: <message>`` on standard error and exit with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class ToldByMain(ClaraError):
    """A problem that the main one of several processes has found, and alone prints: the others end for it, too."""
