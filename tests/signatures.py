"""The type checker of signatures that `tests/conftest.py` installs: shapes and dtypes, wherever they are annotated."""

import re
from collections.abc import Callable

import beartype

# As for pyright, a whole number may stand for a float.
_checker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_SHAPED = re.compile(r"\b(Shaped|Num|Real|Inexact|Float|Int|Bool|Key|UInt|BFloat|Integer)\d*\[")


def checked(function: Callable) -> Callable:
    """Return the function with its annotated arrays checked; fields of a dataclass are not.

    JAX makes pytrees anew with whatever stands in their leaves' place: shapes, shardings, numbers of axes. What is no
    array is left to pyright: an array may stand for a sequence of numbers, and one of its numbers for an int.
    """
    annotations = function.__annotations__
    shaped = {name: kind for name, kind in annotations.items() if _SHAPED.search(str(kind))}
    if function.__name__ == "__init__" or not shaped:
        return function
    function.__annotations__ = shaped
    checking = _checker(function)
    function.__annotations__ = annotations
    return checking
