"""Repositories of the Hugging Face Hub: what they hold, and downloads whose size is said beforehand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clara_jax.errors import ClaraError

NAME = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"  # of a repository, as a regular expression
_SECONDS = 10  # until the Hub counts as out of reach


def files_of(hub_id: str, hint: str) -> dict[str, int] | None:
    """Return the files of a model's repository, with their sizes in bytes; None where the Hub cannot be reached.

    Args:
      hub_id: "org/name".
      hint: the end of error messages: what else can be done.

    Raises:
      ClaraError: there is no such model; it is gated.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # A cheap request before any other: an unreachable Hub would cost the download several long retries.
        info = HfApi().model_info(hub_id, timeout=_SECONDS, files_metadata=True)
    except GatedRepoError:
        raise ClaraError(f"{hub_id}: a gated model; accept its terms on the Hub and log in, or {hint}") from None
    except RepositoryNotFoundError:
        raise ClaraError(f"{hub_id}: no such directory, and no such model on the Hugging Face Hub; {hint}") from None
    except Exception:
        return None
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def download(
    hub_id: str,
    sizes: Mapping[str, int] | None,
    allowed: Sequence[str],
    ignored: Sequence[str] = (),
    hint: str = "give a directory",
    folder: str = "",
) -> Path:
    """Return the directory of a repository's files: downloaded, or from the cache where the Hub cannot be reached.

    How much is to be loaded is one line on standard error, before the progress of the download.

    Args:
      hub_id: "org/name".
      sizes: see `files_of`.
      allowed: names of the files, or patterns.
      ignored: patterns of those that are not loaded.
      hint: see `files_of`.
      folder: that holds all of them, for the message that says how to fetch them.

    Raises:
      ClaraError: the Hub cannot be reached, and the cache does not hold the repository; the download failed.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    allow, ignore = list(allowed), list(ignored)
    if sizes is not None:
        wanted = filter_repo_objects(sizes, allow_patterns=allow, ignore_patterns=ignore)
        missing = [name for name in wanted if not isinstance(try_to_load_from_cache(hub_id, name), str)]
        if missing:
            amount = f"{len(missing)} files, {sum(sizes[name] for name in missing) / 1e9:,.2f} GB"
            print(f"{hub_id}: loading {amount} from the Hugging Face Hub", file=sys.stderr, flush=True)
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=allow, ignore_patterns=ignore, local_files_only=sizes is None)
        )
    except LocalEntryNotFoundError:
        raise ClaraError(out_of_reach(hub_id, folder, hint)) from None
    except Exception as error:
        raise ClaraError(f"{hub_id}: the download from the Hugging Face Hub failed ({error}); {hint}") from None


def out_of_reach(hub_id: str, folder: str, hint: str) -> str:
    """Return the message for files that neither the Hub nor the cache gives; see `download`."""
    include = f' --include "{folder}/*"' if folder else ""
    return (
        f"{hub_id}: no such directory, and the Hugging Face Hub cannot be reached; where it can be, "
        f"`hf download {hub_id}{include}` fetches it into the cache (HF_HOME), which may be copied here; or {hint}"
    )
