"""What a checkpoint of any format says of its model, before a tensor of it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_jax.input_pipeline.prompts import PROMPT_VERSION
from clara_jax.model.quantization import NONE


@dataclasses.dataclass(frozen=True)
class Description:
    """A checkpoint's description; each format's ``describe`` makes it, and `clara_jax.checkpoints.opening` checks it.

    Attributes:
      path: the checkpoint's directory; of a training run that of its newest checkpoint.
      source: the file that says this, for error messages.
      clara: the method's numbers, the fields of `ClaraConfig`.
      base: the base model's "name"; where the format has them also the "hash" of its files and its "config", and then
        no other base will do.
      precision: that of the training, one of `clara_jax.model.precision.CHOICES`.
      history: one entry per finished stage.
      trained: subtrees that some stage has trained; None where the format does not say: the adapters that it holds,
        and the memory tokens.
      overrides: subtrees of the base that the checkpoint holds, as far as the base has them.
      base_field: name in ``source`` of the base's name.
      prompt_version: that of the training.
      tokenizer: folder of the complete tokenizer; None where it is the base's with the added tokens.
      tokenizer_hash: of that one; None where the format does not say.
      released_bos: whether a missing bos is what the released code puts there, which depends on the base's tokenizer.
      further_ends: see `Bundle`; of a checkpoint that holds the whole base, whose files are not opened.
      note: a line for whoever opens it.
      quantization: of the base's kernels in training, one of `clara_jax.model.quantization.CHOICES`.
    """

    path: Path
    source: Path
    clara: Any
    base: Mapping[str, Any]
    precision: str
    history: tuple[Mapping[str, Any], ...]
    trained: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()
    base_field: str = "base"
    prompt_version: Any = PROMPT_VERSION
    tokenizer: Path | None = None
    tokenizer_hash: str | None = None
    released_bos: bool = False
    further_ends: tuple[int, ...] = ()
    note: str = ""
    quantization: str = NONE
