"""Where a checkpoint lies: a directory, a model inside the package, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from clara_jax.checkpoints import compact, peft_folders, released, run
from clara_jax.checkpoints.integrity import METADATA
from clara_jax.checkpoints.retention import checkpoints
from clara_jax.errors import ClaraError
from clara_jax.formats import hub
from clara_jax.shipped import folder_of

# Each is a module with FILES, ``describe`` and ``load``; the first one is taken whose files are all there.
FORMATS = (compact, released, peft_folders, run)
_OTHER_PROGRAMS = tuple(form for form in FORMATS if form.FILES)  # what a folder's names tell
_HUB = re.compile(rf"({hub.NAME})((?:/[\w.-]+)*)/?")
_HUB_FILES = (".json", ".jinja", ".pth", ".safetensors")  # endings of what checkpoints are made of
_SHOWN = 8  # folders that a message names


def locate(path: str | os.PathLike) -> tuple[Path, ModuleType]:
    """Return a checkpoint's directory, and the module that reads its format.

    Args:
      path: a directory; the name of a model inside the package (`clara_jax.shipped`); or a Hub id, perhaps with a
        folder of that repository: "apple/CLaRa-7B-E2E/compression-16".

    Raises:
      ClaraError: nothing by that name, no download possible, or a directory that holds no checkpoint itself.
    """
    if not isinstance(path, str | os.PathLike):
        raise ClaraError(f"{path!r} is no path; give that of a directory")
    folder = folder_of(path) or Path(path)
    if not os.path.isdir(folder):  # also False of a string that cannot be a path
        folder = _from_hub(os.fspath(path))
    form = next(form for form in FORMATS if all((folder / name).is_file() for name in form.FILES))
    if form is run and not _is_checkpoint(folder) and (found := _folders_with_checkpoints(folder)):
        raise ClaraError(_its_folders_do(str(path), found))
    return folder, form


def _from_hub(name: str) -> Path:
    """Return the directory of a checkpoint of the Hub, downloaded unless the cache holds it."""
    hint = "give a training run, one of its checkpoints, or a released CLaRa checkpoint"
    match = _HUB.fullmatch(name)
    # A path below a folder that is there is a mistyped one, about which nobody else need be asked.
    if not match or os.path.isdir(name.partition("/")[0]):
        raise ClaraError(f"{name}: no such directory; {hint}, or the Hub id of one")
    repository, folder = match[1], match[2].strip("/")
    sizes = hub.files_of(repository, hint)
    if sizes is None:
        allowed = [f"{folder}/*{ending}" if folder else f"*{ending}" for ending in _HUB_FILES]
    else:
        allowed = _files_of_checkpoint(name, folder, sizes)
    found = hub.download(repository, sizes, allowed, hint=hint, folder=folder) / folder
    if not found.is_dir():
        raise ClaraError(hub.out_of_reach(repository, folder, hint))
    return found


def _files_of_checkpoint(name: str, folder: str, sizes: Mapping[str, int]) -> list[str]:
    """Return the names of the files that a checkpoint of a repository is made of."""
    names: dict[str, set[str]] = {}
    for file in sizes:
        names.setdefault(posixpath.dirname(file), set()).add(posixpath.basename(file))
    holding = sorted(at for at, files in names.items() if any(files.issuperset(f.FILES) for f in _OTHER_PROGRAMS))
    if folder not in holding:
        if not holding:
            raise ClaraError(f"{name}: that repository of the Hub holds no CLaRa checkpoint; name another one")
        repository = name.rstrip("/").removesuffix(f"/{folder}") if folder else name.rstrip("/")
        raise ClaraError(_its_folders_do(repository, holding))
    others = [f"{at}/" for at in holding if at != folder]
    inside = [file for file in sizes if file.startswith(f"{folder}/" if folder else "") and file.endswith(_HUB_FILES)]
    return [file for file in inside if not any(file.startswith(at) for at in others if at.startswith(folder))]


def _folders_with_checkpoints(path: Path) -> list[str]:
    """Return the folders of a directory, and theirs, that hold checkpoints, by their paths from it."""
    found = []
    for folder in _folders(path):
        inner = [folder] if _is_checkpoint(folder) else [one for one in _folders(folder) if _is_checkpoint(one)]
        found += [one.relative_to(path).as_posix() for one in inner]
    return found


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:  # whose content nobody may see
        return []


def _is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint of any format, or a run with some."""
    known = any(all((path / name).is_file() for name in form.FILES) for form in _OTHER_PROGRAMS)
    return known or (path / METADATA).is_file() or bool(checkpoints(path))


def _its_folders_do(name: str, folders: Iterable[str]) -> str:
    folders = list(folders)
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    shown = ", ".join(folders[:_SHOWN]) + more
    example = f"{name.rstrip('/')}/{folders[0]}"
    return f"{name}: holds no checkpoint itself, but its folders do ({shown}); name one of them, such as {example}"
