"""Where the tests find golden numbers and real data that are not part of the repository.

``CLARA_GOLDEN_DIR`` and ``CLARA_SHARED_DATA`` name the folders; by default they lie beside the checkout. A missing
default folder skips (users of the repository have none); a variable that is set and leads nowhere fails (a check that
silently did not run is worse than none).
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path | None:
    """The folder, or None where only the default is asked for and it does not exist."""
    named = os.environ.get(variable)
    folder = Path(named) if named else ROOT.parent / "shared" / default
    if folder.is_dir():
        return folder
    if named:
        raise FileNotFoundError(f"{variable}={named}: no such directory")
    return None


def golden_dir() -> Path:
    """The folder of golden files; skips where the default is absent."""
    return _folder("CLARA_GOLDEN_DIR", "golden") or pytest.skip("no golden files: set CLARA_GOLDEN_DIR")


def golden_smollm2(name: str) -> Path:
    """A file of the golden folder's part on SmolLM2; skips where the folder has none, as those of other bases."""
    path = golden_dir() / "smollm2" / name
    return path if path.is_file() else pytest.skip(f"no golden files of SmolLM2 in {golden_dir()}")


def shared_data() -> Path:
    """The folder of real QA data; skips where the default is absent."""
    return _folder("CLARA_SHARED_DATA", "data") or pytest.skip("no real data: set CLARA_SHARED_DATA")


def golden_folders() -> list[Path]:
    """Every folder with a ``meta.json`` below the golden directory: [] where the default is absent, an error where the
    variable is set and nothing is found."""
    folder = _folder("CLARA_GOLDEN_DIR", "golden")
    found = sorted(path.parent for path in folder.glob("**/meta.json")) if folder else []
    if not found and os.environ.get("CLARA_GOLDEN_DIR"):
        raise FileNotFoundError(f"CLARA_GOLDEN_DIR={folder}: no folder with a meta.json below it")
    return found
