"""Calls from one file of the package to another, counted while a function runs."""

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.locations import ROOT
from tests.test_imports import floor_of


class FileCalls(NamedTuple):
    """What a function's calls between files of the package come to, in the thread that called it.

    Attributes:
      calls: number of calls of a function of the package from another file of it; a callback, which some other
        package calls, counts from the file below it on the stack, and every resumption of a generator is a call.
      climbs: those of them that enter a higher floor (`tests.test_imports.FLOORS`).
      files: number of files in which some function was called.
      functions: how often each function was called, by its file's path within the package and its name.
    """

    calls: int
    climbs: int
    files: int
    functions: dict[tuple[str, str], int]


def count_file_calls(function: Callable[[], Any], package: Path = ROOT / "clara_jax") -> FileCalls:
    """Run a function and count; what it imports for the first time is not counted, call it once before."""
    folder, calls = f"{package}/", collections.Counter()
    functions: collections.Counter[tuple[str, str]] = collections.Counter()

    def profile(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(folder) or code.co_name == "<module>":
            return
        functions[code.co_filename.removeprefix(folder), code.co_name] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(folder):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != code.co_filename:
            calls[caller.f_code.co_filename.removeprefix(folder), code.co_filename.removeprefix(folder)] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    climbs = sum(count for (caller, called), count in calls.items() if _floor(called) > _floor(caller))
    return FileCalls(calls.total(), climbs, len({file for file, _ in functions}), dict(functions))


def _floor(file: str) -> int:
    return floor_of(file.removesuffix(".py").replace("/", "."))
