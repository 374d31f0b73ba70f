"""Functions on untrusted files and templates, run in a subprocess with limits on time and memory.

Parsers of other packages may take any time and any memory on malicious inputs, and a thread cannot be stopped. The
subprocess is kept between calls, so that a call costs a message each way; one that exceeds a limit is killed, and the
next call starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError

if sys.platform != "win32":
    import resource

GIB = 2**30
_START = 120.0  # seconds that the process may take to import what a call needs, on a busy machine
_PATIENCE = 10.0  # wall-clock seconds allowed per second of CPU time: the cores may be shared
_HEAD = struct.Struct("<Q")


class ExceededError(Exception):
    """A call that exceeded its limit, which the message names."""


class Confined:
    """One process that calls functions of this package by name, one call at a time.

    Args:
      memory: bytes of address space that the process may have beyond what it starts with.
    """

    def __init__(self, memory: int = 2 * GIB):
        self._memory, self._lock = memory, threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # id of the process that started it: a fork must not write into the same pipe
        atexit.register(self._end)

    def call(self, function: str, arguments: Sequence[Any], seconds: float) -> Any:
        """Call a function in the subprocess and return its value.

        Args:
          function: "module:name" within this package; it takes values that pickle and returns a JSON value.
          arguments: of the function.
          seconds: limit on CPU time of the call.

        Raises:
          ClaraError: the function raised it.
          ExceededError: it took longer, asked for more memory, or ended the process.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None, "Popen was given PIPE"
            request = pickle.dumps((function, tuple(arguments), seconds, self._memory))
            try:
                process.stdin.write(_HEAD.pack(len(request)) + request)
                process.stdin.flush()
                reply = json.loads(self._reply(process, seconds))
            except (OSError, EOFError):
                self._end()
                code = process.wait()
                if code == -signal.SIGXCPU:
                    raise ExceededError(f"more than {seconds:g} s") from None
                raise ExceededError(f"more than {self._memory // 2**20:,} MiB of memory (ended with {code})") from None
            except BaseException:  # Ctrl-C: the pending answer must not be taken for that of the next call
                self._end()
                raise
        if "memory" in reply:
            raise ExceededError(f"more than {self._memory // 2**20:,} MiB of memory")
        if "error" in reply:
            raise ClaraError(reply["error"])
        return reply["value"]

    def _running(self) -> subprocess.Popen:
        if sys.platform == "win32":
            raise ClaraError(
                "Windows cannot bound the memory and time of a process that reads others' files and templates; use its "
                "subsystem for Linux"
            )
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            root = str(Path(__file__).resolve().parent.parent)
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clara_jax.confined"],  # -P: no module of the folder it is started in
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # Ctrl-C is for the process that started it
            )
            self._owner = os.getpid()
        return self._process

    def _reply(self, process: subprocess.Popen, seconds: float) -> bytes:
        deadline = time.monotonic() + _START + _PATIENCE * seconds
        (size,) = _HEAD.unpack(self._read(process, _HEAD.size, deadline))
        return self._read(process, size, deadline)

    def _read(self, process: subprocess.Popen, size: int, deadline: float) -> bytes:
        assert process.stdout is not None, "Popen was given PIPE"
        handle, parts = process.stdout.fileno(), []
        while size:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise EOFError
            part = os.read(handle, min(size, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            with contextlib.suppress(OSError):
                process.kill() if process.poll() is None else None
            for pipe in filter(None, (process.stdin, process.stdout)):
                with contextlib.suppress(OSError):
                    pipe.close()


def _serve() -> None:
    """Answer calls from standard input until it is closed."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a parser's prints must not mix with replies
    sys.setrecursionlimit(2000)
    functions: dict[str, Any] = {}
    while head := requests.read(_HEAD.size):
        name, arguments, seconds, memory = pickle.loads(requests.read(_HEAD.unpack(head)[0]))
        if name not in functions:
            module, _, attribute = name.partition(":")
            functions[name] = getattr(importlib.import_module(module), attribute)
        reply = _answer(functions[name], arguments, seconds, memory)
        replies.write(_HEAD.pack(len(reply)) + reply)
        replies.flush()


def _answer(function: Any, arguments: tuple, seconds: float, memory: int) -> bytes:
    _, hard_seconds = resource.getrlimit(resource.RLIMIT_CPU)
    _, hard_memory = resource.getrlimit(resource.RLIMIT_AS)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, hard_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory, hard_memory))
    try:
        return json.dumps({"value": function(*arguments)}).encode()
    except ClaraError as error:
        return json.dumps({"error": str(error)}).encode()
    except MemoryError:
        return b'{"memory": true}'
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard_memory, hard_memory))
        resource.setrlimit(resource.RLIMIT_CPU, (hard_seconds, hard_seconds))


def _address_space() -> int:
    """Return the bytes that the process has mapped."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # another system than Linux
        return 2 * GIB


if __name__ == "__main__":
    _serve()
