"""A base model alone, which answers chats without memories and adapters.

lm = BaseLM.open("smollm2")
request = lm.request([{"role": "user", "content": "What is the capital of France?"}])
print(lm.text(lm.engine.generate([request])[0].tokens))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.api import GREEDY
from clara_jax.checkpoints import opening
from clara_jax.deprecation import renamed_attributes
from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Engine
from clara_jax.inference.requests import Request
from clara_jax.inference.weights import check as check_weights
from clara_jax.input_pipeline.chat_templates import ChatTemplate, ChatTemplateError
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.model.sharding import divisible, make_mesh

Messages = Sequence[Mapping[str, str]]  # each with "role" and "content"
LEAST_SHARED = 128  # tokens; for fewer, another program costs more than the prefill
SHARED_BUDGET = 1 << 30  # bytes: a synthesis has eight steps, each with different demonstrations
# The sizes of the parts that a base alone does not use.
_LEAST = ClaraConfig(doc_max_length=1, compress_rate=1, lora_rank=1, max_length=1)


class BaseLM:
    """A base language model that answers chats; open one with `BaseLM.open`.

    Its methods are for one thread at a time.

    Attributes:
      name: of the base, without the folders in which it lies.
      engine: decodes the answers.
    """

    def __init__(
        self, name: str, engine: Engine, chats: PreTrainedTokenizerFast, tokenizer: ClaraTokenizer, embed_dim: int
    ):
        """Join an engine and its tokenizers.

        Args:
          name: of the base.
          engine: decodes the answers.
          chats: the base's unchanged tokenizer, whose template renders chats.
          tokenizer: the same with CLaRa's added tokens.
          embed_dim: of the base's embeddings.
        """
        self.name, self.engine = name, engine
        self._chats, self._tokenizer, self._template = chats, tokenizer, ChatTemplate(chats)
        self._no_memories = np.zeros((0, _LEAST.memory_tokens, embed_dim), np.float32)

    @classmethod
    def open(
        cls,
        base: str,
        *,
        precision: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int = 16,
        weights: str | None = None,
    ) -> BaseLM:
        """Open a base.

        Args:
          base: see `open_base`.
          precision: one of `clara_jax.model.precision.CHOICES`; default "bfloat16".
          mesh: default all devices along "data".
          batch_size: chats that are answered together, rounded up to a multiple that the mesh divides.
          weights: see `Engine`; fresh adapters change nothing, so all but "merged-bfloat16" are the base's weights.

        Raises:
          ClaraError: see `clara_jax.checkpoints.opening.from_base`; unknown weights.
        """
        if weights is not None:
            check_weights(weights)
        mesh = mesh or make_mesh()
        opened = open_base(base)
        chats = opened.load_tokenizer()
        bundle = opening.from_base(opened, _LEAST, mesh, precision or "bfloat16")
        model = _Base(**vars(bundle.model))
        # The bundle is not kept: where the engine has made a copy of the weights, that is the only one.
        rows = divisible(batch_size, mesh)
        engine = Engine(model, bundle.params, mesh, bundle.end_ids, rows, weights, prefix_budget=SHARED_BUDGET)
        local = Path(os.path.expanduser(base))
        name = local.resolve().name if local.exists() else base
        return cls(name, engine, chats, bundle.tokenizer, model.config.embed_dim)

    @property
    def defaults(self) -> dict[str, Any]:
        """What a server says of its defaults: nothing, as there is no retrieval."""
        return {}

    def request(self, messages: Messages, sampling: Sampling = GREEDY, seed: int = 0) -> Request:
        """Return the engine's request for a chat, up to the assistant's next message.

        The prefix before the last message, usually instructions and demonstrations, is prefilled once for chats that
        share it, where it has `LEAST_SHARED` tokens or more.

        Strings of special tokens in a message are read as text. A template that refuses the system role gets a first
        message of the system and the user's after it as one, joined by a newline.

        Raises:
          ClaraError: messages that the base's chat template refuses.
        """
        said = [{"role": m["role"], "content": self._tokenizer.plain(m["content"])} for m in messages]
        rendered = self._render(said)
        read = self._chats(rendered, add_special_tokens=False, return_offsets_mapping=True)
        ids, last = read["input_ids"], rendered.rfind(said[-1]["content"].strip())
        shared = sum(end <= last for _, end in read["offset_mapping"])
        shared = shared if LEAST_SHARED <= shared < len(ids) else 0
        return Request(ids, [-1] * len(ids), self._no_memories, sampling, seed, shared)

    def text(self, tokens: Sequence[int]) -> str:
        """Decode token ids."""
        return self._tokenizer.decode(tokens)

    def warm_up(self, max_new_tokens: int = 64) -> None:
        """Compile the programs of a first chat, for a single one and for a full batch."""
        request = self.request([{"role": "user", "content": "What is it?"}], Sampling(max_new_tokens))
        self.engine.warm_up(lambda number: dataclasses.replace(request, seed=number))

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._template.render([messages], True)[0]
        except ChatTemplateError as error:
            match messages:
                case [{"role": "system", "content": system}, {"role": "user", "content": user}, *rest]:
                    return self._render([{"role": "user", "content": f"{system}\n{user}"}, *rest])
            raise ClaraError(f"messages: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Base(ClaraModel):
    """A base that never generates the added tokens, which it was not trained on."""

    def logits(self, params: Any, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return float32 logits of the vocabulary and of no added token, for states [B, T, E]."""
        base, added = super().logits(params, states)
        assert added is not None  # a bundle's parameters hold the added tokens
        return base, added[..., :0]


__getattr__ = renamed_attributes(__name__, {"Plain": "BaseLM"})
