"""The type checker of signatures that `tests/conftest.py` installs."""

from collections.abc import Callable

import beartype

# As for pyright, a whole number may stand for a float.
_checker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """Return the function with its arguments and result checked; fields of a dataclass are not.

    JAX makes pytrees anew with whatever stands in their leaves' place: shapes, shardings, numbers of axes.
    """
    return function if function.__name__ == "__init__" else _checker(function)
