"""A CLaRa model as one value: configuration, parameters, tokenizer, origin of its base; and what a checkpoint holds.

`clara_jax.checkpoints.opening` makes and loads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clara_jax.checkpoints.run import save_checkpoint
from clara_jax.distributed import gather
from clara_jax.formats.base import end_tokens
from clara_jax.input_pipeline.prompts import PROMPT_VERSION
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import END, ClaraModel
from clara_jax.method.parameters import COMPRESSOR, overlap, split, unflatten
from clara_jax.model.quantization import NONE

SCRATCH = "scratch"  # the name of a base that was made from scratch


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A complete CLaRa model.

    Attributes:
      model: the forward pass and its configuration.
      params: see `clara_jax.method.parameters`.
      tokenizer: with the added tokens.
      mesh: of the devices that hold the parameters.
      base: the referenced base: "name", "hash" of its files and "config", the content of its ``config.json``.
      base_overrides: subtrees of the base that differ from the referenced one, and are stored in checkpoints.
      trained: subtrees that some stage has trained so far.
      history: one entry per finished stage.
      further_ends: tokens that end an answer by the base's other files (`BaseModel.end_ids`).
    """

    model: ClaraModel
    params: Any
    tokenizer: ClaraTokenizer
    mesh: jax.sharding.Mesh
    base: Mapping[str, Any]
    base_overrides: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    further_ends: tuple[int, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of base, adapters, tokenizer, prompt version and compress rate.

        It is equal exactly when memories and answers are interchangeable. Checkpoints, caches and reports carry it and
        refuse another.
        """
        return self._digest(("lora", "tokens", *self.base_overrides))

    def compressor_fingerprint(self) -> str:
        """Return the same hash over the compressor's parameters alone.

        It is equal exactly when document memories are interchangeable, as they are before and after a stage that leaves
        the compressor frozen. Stores of memories carry it and refuse another.
        """
        return self._digest((*(name for name in COMPRESSOR if name != "base"), *self.base_overrides))

    def _digest(self, subtrees: Sequence[str]) -> str:
        digest = hashlib.sha256()
        clara = self.model.clara
        facts = (
            self.base["hash"],
            self.tokenizer.tokenizer_hash(),
            PROMPT_VERSION,
            clara.doc_max_length,
            clara.memory_tokens,
        )
        # Defaults add nothing, so models from before these options keep their fingerprints.
        places = [] if clara.memory_places == END else [clara.memory_places]
        kernels = [] if self.model.quantization == NONE else [self.model.quantization]
        digest.update(json.dumps([*facts, clara.lora_scale, self.model.precision, *places, *kernels]).encode())
        stored, _ = split(self.params, subtrees)
        for path, leaf in sorted(stored.items()):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(gather(leaf)).tobytes())
        return digest.hexdigest()

    @property
    def memory_sizes(self) -> tuple[int, int, str]:
        """M, E and the memory count: what a store of memories is made for."""
        clara = self.model.clara
        return clara.memory_tokens, self.model.config.embed_dim, clara.memory_count

    @property
    def top_k(self) -> int | None:
        """The number of documents of a prompt in the last stage whose history entry has it, or None."""
        return next((entry["top_k"] for entry in reversed(self.history) if "top_k" in entry), None)

    @property
    def ranks(self) -> bool:
        """Whether a stage has trained the query reasoner.

        Otherwise questions are encoded with the compressor's adapter, and their scores rank poorly.
        """
        return any(overlap("lora/query_reasoner", subtree) for subtree in self.trained)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token ids that end an answer.

        These are the tokenizer's end token, the token that the chat template writes after an answer, and the tokens
        named in the base's files: ``config.json``, ``generation_config.json``, GGUF's ends of turns.
        """
        named = end_tokens(self.base["config"].get("eos_token_id"), 'config.json: "eos_token_id"')
        ids = (self.tokenizer.eos_id, *named, *self.further_ends, self.tokenizer.turn_end_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None and i < self.tokenizer.total_vocab))

    def with_limits(self, max_length: int, lora_dropout: float) -> Bundle:
        """Return the model with another longest prompt and another dropout, which each training stage may choose."""
        clara = dataclasses.replace(self.model.clara, max_length=max_length, lora_dropout=lora_dropout)
        model = dataclasses.replace(self.model, clara=clara)
        return dataclasses.replace(self, model=model, tokenizer=self.tokenizer.with_max_length(max_length))

    def with_memories(self, doc_max_length: int, compress_rate: int, memory_count: str | None = None) -> Bundle:
        """Return the model for documents of another longest length and another rate.

        Args:
          doc_max_length: longest document, in tokens.
          compress_rate: tokens of a document for each memory vector.
          memory_count: one of `clara_jax.memory_count.MEMORY_COUNTS`; None keeps the model's.

        Raises:
          ClaraError: a rate that does not divide the length; another number of memory tokens where these are different
            tokens.
        """
        clara = dataclasses.replace(self.model.clara, doc_max_length=doc_max_length, compress_rate=compress_rate)
        clara = dataclasses.replace(clara, memory_count=memory_count or clara.memory_count)
        if clara == self.model.clara:
            return self
        model = dataclasses.replace(self.model, clara=clara)
        tokenizer = self.tokenizer.with_memories(doc_max_length, clara.memory_tokens, clara.memory_count)
        return dataclasses.replace(self, model=model, tokenizer=tokenizer)

    def at_rate(self, rate: int | None, memory_count: str | None = None) -> Bundle:
        """Return the model for another compress rate.

        Args:
          rate: tokens of a document for each memory vector; None keeps the rate.
          memory_count: see `with_memories`.

        Raises:
          ClaraError: a rate that does not divide the longest document; another one where the memory tokens differ.
        """
        clara = self.model.clara
        return self.with_memories(clara.doc_max_length, clara.compress_rate if rate is None else rate, memory_count)

    def with_attention(self, attention: str) -> Bundle:
        """Return the model with another implementation of attention (see `clara_jax.model.attention`)."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, attention=attention))

    def contents(self, stage: str) -> Contents:
        """Return the contents of a checkpoint of this model.

        These are adapters, added rows, base leaves that differ from the referenced base, the tokenizer, and metadata.
        """
        stored, _ = split(self.params, ("lora", "tokens", *self.base_overrides))
        metadata = {
            "kind": "clara_jax",
            "stage": stage,
            "fingerprint": self.fingerprint(),
            "prompt_version": PROMPT_VERSION,
            "base": dict(self.base),
            "own": list(self.base_overrides),
            "trained": list(self.trained),
            "history": [dict(entry) for entry in self.history],
            "clara": dataclasses.asdict(self.model.clara),
            "precision": self.model.precision,
            "quantization": self.model.quantization,
        }
        # Loading a checkpoint that holds the base does not read the base's files, which name these tokens.
        if "base" in self.base_overrides and self.further_ends:
            metadata["ends"] = list(self.further_ends)
        return Contents(unflatten(stored), metadata, lambda path: self.tokenizer.save(path / "tokenizer"))

    def save(self, directory: Path, stage: str) -> None:
        """Write a checkpoint that `clara_jax.checkpoints.opening.load` opens.

        Raises:
          ClaraError: the directory cannot be written; nothing half-written stays.
        """
        save_checkpoint(directory, *self.contents(stage))


class Contents(NamedTuple):
    """A checkpoint before it is written: arrays, metadata, and a function that writes the other files."""

    arrays: dict[str, Any]
    metadata: dict[str, Any]
    write_extra: Callable[[Path], None]
