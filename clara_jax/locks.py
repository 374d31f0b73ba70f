"""Locks between processes: the kernel's lock on a file, which ends with its process, however that ends.

That the file is there means nothing. On Windows, whose locks are of ranges of bytes and exclude readers of these bytes,
a range beyond any content is locked: all of it alone, or one byte of it beside others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterator

from clara_jax.errors import ClaraError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_START, _BYTES, _TRIES = 2**30, 1024, 32  # of the range; the bytes of it that a sharing process tries at a time
_WAIT = 0.05  # seconds between tries where the system cannot wait


@contextlib.contextmanager
def locked(
    path: str | os.PathLike,
    busy: str | Callable[[], str] | None,
    shared: bool = False,
    unsupported: Callable[[OSError], None] = lambda error: None,
) -> Iterator[None]:
    """Hold the lock on a file within the block, so that other processes are kept out.

    The file is made where it is missing, and stays.

    Args:
      path: the lock file.
      busy: the error message where another process has the lock, or makes it; None to wait for it.
      shared: whether any number of sharing processes may hold it at once, to the exclusion of others; nothing is locked
        where the file is missing on a read-only file system.
      unsupported: called with the error of a file system without locks, where nothing is locked.

    Raises:
      ClaraError: another process has the lock, and ``busy`` is given.
      OSError: the file cannot be opened.
    """
    try:
        file = os.open(path, os.O_CREAT | (os.O_RDONLY if shared else os.O_RDWR), 0o666)
    except OSError:
        if not shared:
            raise
        yield
        return
    release = None
    try:
        try:
            release = _acquire(file, busy is None, shared)
        except BlockingIOError:
            raise ClaraError((busy() if callable(busy) else busy) or f"{path}: another process has it") from None
        except OSError as error:
            unsupported(error)
        yield
    finally:
        # Closing alone would not do: a forked child shares the open file, and with it the lock.
        if release is not None:
            with contextlib.suppress(OSError):
                release()
        os.close(file)


if sys.platform == "win32":

    def _acquire(file: int, wait: bool, shared: bool) -> Callable[[], None]:
        """Lock an open file, and return what releases it.

        Raises:
          BlockingIOError: another process has the lock, and ``wait`` is False.
          OSError: there are no locks.
        """
        size = 1 if shared else _BYTES
        while True:
            for start in random.sample(range(_BYTES), _TRIES) if shared else (0,):
                try:
                    _change(file, msvcrt.LK_NBLCK, start, size)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EDEADLK):
                        raise
                else:
                    return lambda start=start: _change(file, msvcrt.LK_UNLCK, start, size)
            if not wait:
                raise BlockingIOError
            time.sleep(_WAIT)

    def _change(file: int, mode: int, start: int, size: int) -> None:
        os.lseek(file, _START + start, os.SEEK_SET)  # the range begins where the file stands
        msvcrt.locking(file, mode, size)

else:

    def _acquire(file: int, wait: bool, shared: bool) -> Callable[[], None]:
        """Lock an open file, and return what releases it.

        Raises:
          BlockingIOError: another process has the lock, and ``wait`` is False.
          OSError: there are no locks.
        """
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return lambda: fcntl.flock(file, fcntl.LOCK_UN)
