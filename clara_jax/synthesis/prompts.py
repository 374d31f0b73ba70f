"""The prompts of the synthesis: ``prompts.toml``, or a user's copy of it, checked and filled.

A document is untrusted text. It comes in tags that it cannot close, and without the control tokens of chat templates,
which many servers take for the end of a message wherever they stand. The task is stated before it and again after it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from clara_jax.errors import ClaraError
from clara_jax.synthesis.replies import SCHEMAS

DEFAULT_LANGUAGE = "en"

FIELDS: dict[str, tuple[str, ...]] = {
    "simple_questions": ("document",),
    "complex_questions": ("document",),
    "answer": ("document", "question"),
    "validate_answer": ("document", "question", "answer"),
    "more_simple_questions": ("document", "pairs"),
    "more_complex_questions": ("document", "pairs"),
    "paraphrase": ("document",),
    "validate_paraphrase": ("document", "paraphrase"),
    "teacher": ("documents", "question"),
}
"""The data fields of each step: (question, answer) pairs, a sequence of documents, and strings."""

Messages = tuple[tuple[str, str], ...]

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")
_CODE = re.compile(r"[a-z]{2,3}")
# Our tags; and the control tokens of common models, such as <|im_end|>, <｜User｜>, </s>, <end_of_turn> and [/INST].
_TAG = "|".join(sorted({name for names in FIELDS.values() for name in names}))
_CONTROL = re.compile(
    rf"<(?=\s*/?\s*(?:{_TAG})\b|/?(?:think|s|bos|eos|start_of_turn|end_of_turn)>|[|｜]|</?SYS>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])",
    re.IGNORECASE,
)
_ESCAPED = {"<": "&lt;", "[": "&#91;"}


class PromptTemplates:
    """The prompts of all steps, in every language of a file.

    Attributes:
      languages: codes of ISO 639-1, in the file's order; "en" is one of them.
      version: a digest of the file's values; comments and layout do not count.
    """

    def __init__(self, content: Mapping[str, Any], path: str):
        """Check a file's content and split it into steps, see `load`.

        Args:
          content: the parsed TOML.
          path: prefix of error messages.
        """
        self._steps = {
            (language, step): _step(section, step, language, path)
            for language, section in _languages(content, path)
            for step in FIELDS
        }
        self.languages = tuple(content)
        self.version = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike | None = None) -> PromptTemplates:
        """Load the prompts of a file, by default of this package's ``prompts.toml``, which documents the format.

        Raises:
          ClaraError: the file cannot be read or is not TOML; "en", a step or a text of it is missing, or is not what it
            should be; a placeholder is missing or unknown.
        """
        file = importlib.resources.files("clara_jax.synthesis") / "prompts.toml" if path is None else Path(path)
        try:
            content = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ClaraError(f"{file}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError:
            raise ClaraError(f"{file}: not UTF-8; save the file as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise ClaraError(f"{file}: not TOML: {error}") from None
        return cls(content, str(file))

    def language_for(self, detected: str) -> str:
        """Return the prompts' language for a text: the text's language, or English where the file lacks it."""
        return detected if detected in self.languages else DEFAULT_LANGUAGE

    def detect_language(self, text: str) -> str:
        """Return the language of a text, a code of ISO 639-1; one of the 97 that py3langid identifies."""
        return self._identifier.classify(text)[0]

    def messages(self, step: str, language: str, **fields: Any) -> Messages:
        """Return the messages of a request: the instruction, the demonstrations with their replies, and the task.

        Args:
          step: a key of `FIELDS`.
          language: one of `languages`.
          **fields: the step's data; see `FIELDS`. Placeholders within the data are not filled.

        Returns:
          (role, content) of each.
        """
        head, user = self._steps[language, step]
        return (*head, ("user", _filled(user, fields)))

    @functools.cached_property
    def _identifier(self) -> LanguageIdentifier:
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
        # Only languages with a code of two letters: much Chinese would be taken for Wu, much English for Pidgin.
        known = [code for code in identifier.labels if len(code) == 2 or code in self.languages]
        identifier.set_languages(known)
        return identifier


class _Step(NamedTuple):
    head: Messages
    user: str


def _filled(template: str, fields: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: _in_tags(match[1], fields[match[1]]), template)


def _in_tags(name: str, value: Any) -> str:
    if name == "documents":
        inside = "\n".join(_in_tags("document", text) for text in value)
    elif name == "pairs":
        pairs = ({"question": question, "answer": answer} for question, answer in value)
        inside = "\n".join(_harmless(json.dumps(pair, ensure_ascii=False)) for pair in pairs)
    else:
        inside = _harmless(value)
    return f"<{name}>\n{inside}\n</{name}>"


def _harmless(text: str) -> str:
    return _CONTROL.sub(lambda match: _ESCAPED[match[0]], text)


def _languages(content: Mapping[str, Any], path: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sections by language; checks their structure, not their texts."""
    if DEFAULT_LANGUAGE not in content:
        raise ClaraError(f"{path}: no [{DEFAULT_LANGUAGE}]; languages without a section of their own need it")
    for language, section in content.items():
        if not _CODE.fullmatch(language):
            raise ClaraError(f"{path}: [{language}]: name a language by its ISO 639-1 code, as [pt]")
        _check_names(section, ("common", *FIELDS), (), f"{path}: [{language}]")
        _check_text(section["common"], f"{path}: [{language}] common")
        for step in FIELDS:
            _check_names(section[step], ("system", "user"), ("demonstrations",), f"{path}: [{language}.{step}]")
    return list(content.items())


def _step(section: Mapping[str, Any], step: str, language: str, path: str) -> _Step:
    where, texts = f"{path}: [{language}.{step}]", section[step]
    _check_text(texts["system"], f"{where} system")
    _check_text(texts["user"], f"{where} user", FIELDS[step])
    head = [("system", f"{texts['system'].strip()}\n\n{section['common'].strip()}")]
    user, demonstrations = texts["user"].strip(), texts.get("demonstrations", [])
    if not isinstance(demonstrations, list):
        raise ClaraError(f"{where} demonstrations: must be tables, each under [[{language}.{step}.demonstrations]]")
    for number, demonstration in enumerate(demonstrations, 1):
        reply = _checked_reply(demonstration, step, f"{where} demonstration {number}")
        head += [("user", _filled(user, demonstration)), ("assistant", reply)]
    return _Step(tuple(head), user)


def _checked_reply(demonstration: Any, step: str, where: str) -> str:
    """Return the JSON reply of a demonstration; checks all of its fields."""
    schema = SCHEMAS[step]["properties"]
    may_miss = [name for name, kind in schema.items() if "null" in kind["type"]]
    needed = [name for name in (*FIELDS[step], *schema) if name not in may_miss]
    _check_names(demonstration, needed, may_miss, where)
    for name, value in demonstration.items():
        if name in ("documents", "questions"):
            good, what = isinstance(value, list) and all(map(_is_text, value)), "a list of texts"
        elif name == "pairs":
            good = isinstance(value, list) and all(
                isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair)) for pair in value
            )
            what = 'a list of ["question", "answer"]'
        elif name == "verdict":
            words = schema[name]["enum"]
            good, what = value in words, " or ".join(f'"{word}"' for word in words)
        else:
            good, what = _is_text(value), "a text"
        if not good:
            raise ClaraError(f"{where} {name}: must be {what}")
    return json.dumps({name: demonstration.get(name) for name in schema}, ensure_ascii=False)


def _check_names(table: Any, needed: Collection[str], others: Collection[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ClaraError(f"{where}: must be a table")
    for name in table:
        if name not in needed and name not in others:
            raise ClaraError(f'{where}: "{name}" is unknown; there may be {", ".join((*needed, *others))}')
    for name in needed:
        if name not in table:
            raise ClaraError(f'{where}: "{name}" is missing')


def _check_text(text: Any, where: str, placeholders: Collection[str] = ()) -> None:
    if not _is_text(text):
        raise ClaraError(f"{where}: must be a text")
    found = _PLACEHOLDER.findall(text)
    known = ", ".join(f"{{{{{name}}}}}" for name in placeholders) or "none"
    for name in found:
        if name not in placeholders:
            raise ClaraError(f"{where}: {{{{{name}}}}} is no placeholder of this text; it has {known}")
    for name in placeholders:
        if name not in found:
            raise ClaraError(f"{where}: {{{{{name}}}}} is missing; the text needs {known}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
