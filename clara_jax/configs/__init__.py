"""One experiment a file, each with ``get_config(arg)``; see `clara_jax.training.config` for what the fields mean.

A command takes one by its name, ``--config smoke``, from any folder, and by its path in a checkout,
``--config configs/smoke.py``; a file of one's own by its path.
"""

from pathlib import Path

_SHARED = ("__init__", "common")


def names() -> list[str]:
    """Return the names of the configurations in the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _SHARED)


def path_of(named: str) -> str:
    """Return ``FILE[:ARG]`` with the path of the file where a configuration of the package is named; else as it is.

    A file of that name comes first.
    """
    file, colon, arg = named.partition(":")
    if file not in names() or Path(file).is_file():
        return named
    return f"{Path(__file__).with_name(file)}.py{colon}{arg}"


def choice() -> str:
    """Return what to give, for messages."""
    return f"name a file, or one of {', '.join(names())}"
