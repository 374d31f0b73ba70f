"""Trained models inside the package, each a folder in the compact form with a licence, a notice and a model card."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "smollm2-clara"  # the model that commands open where no checkpoint is named
_FOLDERS = {DEFAULT: "smollm2_clara"}


def folder_of(name: str | os.PathLike) -> Path | None:
    """Return the folder of a model inside the package, None for any other name."""
    folder = _FOLDERS.get(os.fspath(name))
    return None if folder is None else Path(__file__).parent / folder
