"""Prompts as token ids: the tokenizer of documents with the chat template, and its files.

Everything here follows the released checkpoint format ("Special tokens", "Inputs"), so that token ids agree with those
that the released models were trained on.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from clara_jax.errors import ClaraError
from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast
from clara_jax.input_pipeline.chat_templates import ChatTemplate
from clara_jax.input_pipeline.document_tokenizer import SLICE, DocumentTokenizer
from clara_jax.input_pipeline.prompts import Marker, Memory, Prompt
from clara_jax.input_pipeline.turns import read_turns, shared_length
from clara_jax.memory_count import FIXED
from clara_jax.strict_json import parse

IGNORED = -100  # label of a position that carries no loss
OPTIONS_FILE = "clara_tokenizer.json"
OPTIONS = ("doc_max_length", "memory_tokens", "different_mem_tokens", "missing_bos", "max_length")


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, with its target if it has one, as token ids; T positions.

    Attributes:
      ids: T token ids.
      memory_index: T numbers: -1 at text, ``slot * M + j`` at the j-th of a slot's M memory tokens.
      labels: T token ids, -100 outside the target; position t is predicted from t - 1.
      full_length: T before cutting at the tokenizer's ``max_length``.
      lost_memories: slots of which a memory token was cut off.
      target_lost: there is a target, and all of it was cut off.
    """

    ids: list[int]
    memory_index: list[int]
    labels: list[int]
    full_length: int
    lost_memories: int
    target_lost: bool

    @property
    def cut(self) -> bool:
        """Whether something was cut off on the right."""
        return len(self.ids) < self.full_length

    def only(self, exist: Bool[np.ndarray, "K M"]) -> tuple[list[int], list[int]]:
        """Return ids and memory index without the places of memories that do not exist, bool [K, M]."""
        there = exist.reshape(-1)
        places = zip(self.ids, self.memory_index, strict=True)
        kept = [(token, index) for token, index in places if index < 0 or there[index]]
        return [token for token, _ in kept], [index for _, index in kept]


class ClaraTokenizer(DocumentTokenizer):
    """A base model's tokenizer with CLaRa's tokens at its end, for documents, questions and prompts.

    It has the attributes of `DocumentTokenizer`, and more.

    Attributes:
      max_length: longest prompt with its target, in tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        doc_max_length: int,
        memory_tokens: int,
        different_mem_tokens: bool = True,
        missing_bos: str = "omit",
        max_length: int = 1024,
        memory_count: str = FIXED,
    ):
        """Add CLaRa's tokens to a copy of a base model's tokenizer.

        Args:
          tokenizer: a fast tokenizer of transformers with a chat template; it is copied, never changed.
          doc_max_length: longest document, in tokens.
          memory_tokens: M, memory tokens of a document.
          different_mem_tokens: M different memory tokens, or one token M times.
          missing_bos: for a tokenizer without bos or eos: "omit" the bos, or let the first "memory_token" stand in for
            them, or, as the released code, the "first_special" token without a role (for an eos the second one), the
            added tokens among them.
          max_length: longest prompt with its target, in tokens.
          memory_count: one of `clara_jax.memory_count.MEMORY_COUNTS`.

        Raises:
          ClaraError: no fast tokenizer, no chat template, no eos, or an added token is in the vocabulary already.
        """
        for name, value in (
            ("doc_max_length", doc_max_length),
            ("memory_tokens", memory_tokens),
            ("max_length", max_length),
        ):
            if value < 1:
                raise ClaraError(f"{name}: {value!r} must be at least 1")
        super().__init__(tokenizer, doc_max_length, memory_tokens, different_mem_tokens, missing_bos, memory_count)
        self.max_length = max_length
        self._template = ChatTemplate(self._tokenizer)
        self._turns = read_turns(self)

    @property
    def turn_end_id(self) -> int | None:
        """The special token that the chat template writes after an answer, which ends it; None where it writes none."""
        return self._turns.end_id

    def with_max_length(self, max_length: int) -> ClaraTokenizer:
        """Return the same tokenizer for prompts of another longest length."""
        changed = copy.copy(self)
        changed.max_length = max_length
        return changed

    # --- prompts ---

    def render(self, prompt: Prompt) -> str:
        """Return the prompt in the base's chat template: with its target, or up to where the target would begin.

        See `clara_jax.input_pipeline.turns` for templates that refuse or drop the system role, open with text
        that an answer does not have, or write no end.

        Raises:
          ClaraError: the template fails on these messages.
        """
        return self._render([prompt], prompt.target is not None)[0]

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        """Return the rendered prompt's tokens, cut on the right at ``max_length``.

        A cut is no error here: `EncodedPrompt` reports it, and the caller knows which record it was.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Return `encode_prompt` of each prompt, faster than one by one."""
        alone = self._encode(self._render(prompts, False))
        places = [place for place, prompt in enumerate(prompts) if prompt.target is not None]
        full = list(alone)
        rendered = self._render([prompts[place] for place in places], True)
        for place, ids in zip(places, self._encode(rendered), strict=True):
            full[place] = ids
        return [self._encoded_prompt(*triple) for triple in zip(prompts, full, alone, strict=True)]

    def _encoded_prompt(self, prompt: Prompt, full: list[int], alone: list[int]) -> EncodedPrompt:
        # The labels begin where the prompt with its target ceases to be the prompt alone: a template may end with text
        # that becomes one token with the target's first word.
        prompt_length = shared_length(full, alone)
        ids = full[: self.max_length]
        slots = [segment.slot for segment in prompt.user if isinstance(segment, Memory)]
        memory_index, lost = self._memory_index(ids, slots)
        labels = [IGNORED] * len(ids)
        if prompt.target is not None:
            labels[prompt_length:] = ids[prompt_length:]
        target_lost = prompt.target is not None and prompt_length >= len(ids)
        return EncodedPrompt(ids, memory_index, labels, len(full), lost, target_lost)

    def _memory_index(self, ids: list[int], slots: list[int]) -> tuple[list[int], int]:
        """Return the index of the memory tokens, see `EncodedPrompt`, and the number of slots that are not complete."""
        index, position, length = [-1] * len(ids), 0, self.memory_tokens
        # Whole blocks are looked for: where a memory token stands for a missing bos, it stands alone, too.
        block = [*self.memory_ids, self.special_ids["<SEP>"]]
        for done, slot in enumerate(slots):
            while position < len(ids) and ids[position : position + len(block)] != block[: len(ids) - position]:
                position += 1
            stop = min(position + length, len(ids))
            index[position:stop] = range(slot * length, slot * length + stop - position)
            if stop - position < length:
                return index, len(slots) - done
            position += len(block)
        return index, 0

    def _render(self, prompts: Sequence[Prompt], with_target: bool) -> list[str]:
        results: list[str] = []
        for start in range(0, len(prompts), SLICE):
            part = prompts[start : start + SLICE]
            chats = [self._messages(prompt, with_target) for prompt in part if not prompt.bare]
            finished = self._turns.finished(self._template.render(chats, not with_target), with_target) if chats else []
            rendered = iter(finished)
            results += [self._bare(prompt, with_target) if prompt.bare else next(rendered) for prompt in part]
        return results

    def _bare(self, prompt: Prompt, with_target: bool) -> str:
        if not with_target:
            return self._user_text(prompt)
        assert prompt.target is not None  # prompts without are not rendered with it
        return f"{self._user_text(prompt)}{self.plain(prompt.target)}{self._eos_token}"

    def _messages(self, prompt: Prompt, with_target: bool) -> list[dict[str, str]]:
        system, user = self.plain(prompt.system), self._user_text(prompt)
        if self._turns.takes_system:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        else:
            messages = [{"role": "user", "content": f"{system}\n{user}"}]
        if with_target:
            assert prompt.target is not None  # prompts without are not rendered with it
            messages.append({"role": "assistant", "content": self.plain(prompt.target)})
        return messages

    def _user_text(self, prompt: Prompt) -> str:
        """Return the user message: memories and markers as their tokens, runs of other segments as one plain text."""
        result, text = [], ""
        for segment in prompt.user:
            if isinstance(segment, Memory | Marker):
                result += [self.plain(text), self.memory_text if isinstance(segment, Memory) else segment.name]
                text = ""
            else:
                text += segment
        return "".join([*result, self.plain(text)])

    # --- files ---

    def tokenizer_hash(self) -> str:
        """Return the SHA-256 of all that decides a text's ids: tokenizer, chat template, ends, this class's options."""
        facts = [json.loads(self._base.backend_tokenizer.to_str()), self._base.chat_template]
        facts += [self._base.bos_token, self._base.eos_token, self._base.pad_token, self._options()]
        facts += self._turns.facts  # none for the templates of most models
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write the base's tokenizer and the options; the folder is made."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._base.save_pretrained(directory)
        content = {**self._options(), "hash": self.tokenizer_hash()}
        (directory / OPTIONS_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def save_hugging_face(self, directory: str | Path, added: bool) -> None:
        """Write the tokenizer in the format of transformers, with or without the added tokens, and nothing else.

        The field names are those that transformers 4 and 5 both know: the released code needs 4, which cannot read
        what 5 writes.
        """
        (self._tokenizer if added else self._base).save_pretrained(directory)
        path = Path(directory) / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config.pop("backend", None)
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> ClaraTokenizer:
        """Read the tokenizer that `save` wrote.

        Raises:
          ClaraError: a file is missing, damaged, or not the one that was saved.
        """
        directory = Path(directory)
        path = directory / OPTIONS_FILE
        try:
            options = parse(path.read_text(encoding="utf-8"))
            expected = options.pop("hash")
        except OSError as error:
            raise ClaraError(
                f"{path}: cannot be read ({error.strerror}); give a folder that holds a saved tokenizer"
            ) from None
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ClaraError(f"{path}: is damaged ({error}); restore it from where it was saved") from None
        if set(options) - {"memory_count"} != set(OPTIONS):
            raise ClaraError(
                f"{path}: has the fields {', '.join(sorted(options))}; it must have {', '.join(sorted(OPTIONS))}"
            )
        try:
            # Not AutoTokenizer: by the class's name it may rebuild what tokenizer.json defines exactly.
            base = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise whatever they met
            raise ClaraError(f"{directory}: the tokenizer cannot be read: {error}") from error
        tokenizer = cls(base, **options)
        if tokenizer.tokenizer_hash() != expected:
            raise ClaraError(
                f"{directory}: the tokenizer is not the one that was saved (its hash differs); restore its files"
            )
        return tokenizer

    def _options(self) -> dict[str, int | bool | str]:
        options = {name: getattr(self, name) for name in OPTIONS}
        # A fixed number adds nothing, so that tokenizers from before the option keep their hashes.
        return options if self.memory_count == FIXED else options | {"memory_count": self.memory_count}
