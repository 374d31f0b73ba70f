"""The JSON schemas of the steps' replies, and one lenient parser for all of them.

Servers with structured output keep models to `SCHEMAS`. Others return code fences, words around the JSON, reasoning
before it, single quotes, trailing commas, and the formats of the paper's prompts (appendix I). Where JSON does not
parse, json_repair reads it; what json_repair could invent, a verdict or the end of a cut text, is not taken from it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import json_repair


class MalformedReplyError(Exception):
    """A reply that lacks what was asked for; the message is the reason, in a few words."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a validation.

    Attributes:
      correct: whether the pair or paraphrase passes.
      reason: "" where none is given.
    """

    correct: bool
    reason: str


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_QUESTIONS = _object(questions={"type": "array", "items": _TEXT})
_ANSWER = _object(answer={"type": ["string", "null"]})
# The reason comes first: a verdict after its reason is better than a reason for a verdict.
_VERDICT = _object(reason=_TEXT, verdict={"type": "string", "enum": ["correct", "incorrect"]})

SCHEMAS: dict[str, dict[str, Any]] = {
    "simple_questions": _QUESTIONS,
    "complex_questions": _QUESTIONS,
    "answer": _ANSWER,
    "validate_answer": _VERDICT,
    "more_simple_questions": _QUESTIONS,
    "more_complex_questions": _QUESTIONS,
    "paraphrase": _object(paraphrase=_TEXT),
    "validate_paraphrase": _VERDICT,
    "teacher": _ANSWER,
}
"""The strict JSON schema of each step's reply."""

_THINKS = re.compile(r"\s*<think(?:ing)?>")
_THOUGHT = re.compile(r"</think(?:ing)?>")
_BEGINS_WITH_JSON = re.compile(r"\s*(?:```|[\[{])")
_OPENS = re.compile(r"[\[{]")
_OPENS_TEXT = re.compile(r"[\[{]\s*\"")
_DECODER = json.JSONDecoder(strict=False, parse_float=Decimal)  # line ends within strings; 2.50 stays 2.50
_END = 200  # characters in which it is searched for
# The end of complete, if malformed, JSON: a string, a bare value or nothing, and then closing brackets.
_ENDS = re.compile(r"(?:[\"'”’]|:\s*[\w.+-]+|,\s*(?:null|None)|[\[{])[\s,]*[\]}][\s,\]}]*$")
_NOTHING = re.compile(r"\[\s*\]|:\s*[\"']?0\b")
_EMPTY_LIST = re.compile(r"\s*(?:```\w*)?\s*\[\s*\]\s*(?:```)?\s*")
_NOT_IN_KEYS = re.compile(r"[\W_]+")
_QUESTION_KEY = re.compile(r"question\d*")

_JUDGED = {"correct": True, "richtig": True, "korrekt": True, "正确": True}
_JUDGED |= {"incorrect": False, "falsch": False, "inkorrekt": False, "错误": False, "不正确": False}
_SAME = _JUDGED | {"yes": True, "ja": True, "是": True, "no": False, "nein": False, "否": False}
_VERDICT_NAME = r"(?:verdict|judge?ment)"
_VERDICT_KEY = re.compile(rf"(?:[\"']|[{{,]\s*){_VERDICT_NAME}[\"']?\s*:", re.IGNORECASE)
_VERDICT_VALUE = re.compile(r"\s*[\"']?\s*(\w+)[.!]?\s*[\"']?\s*(?=[,}])")
_VERDICT_ALONE = re.compile(rf"\W*(?:{_VERDICT_NAME}\W+)?(\w+)\W*", re.IGNORECASE)

# "The document does not contain this information", and the like: a whole answer, never only its beginning.
_ABSENT = re.compile(
    r"""
    (?:(?:the|this|these|given|provided)\s)*(?:document|text|passage|context)s?\s(?:does|do)(?:\snot|n't)
      \s(?:contain|mention|provide|state|include|specify|say|give)
      (?:\s(?:this|that|it|so|the|any|enough|such|relevant))*
      (?:\s(?:information|answer|details?))?(?:\s(?:about|on|to|for|regarding)\s.*)?
    |(?:(?:it|this|the\sanswer|the\sinformation)\s)?(?:is\s)?not
      \s(?:stated|mentioned|specified|provided|given|contained|found|available)(?:\sin\s.*)?
    |(?:.*\s)?(?:cannot|can't|can\snot)\sbe\s(?:answered|determined)(?:\s.*)?
    |no\s(?:answer|information)|n/a|null|unanswerable

    |(?:(?:das|dieses|der|dieser)\s)?(?:dokument|text)\senthält(?:\s(?:diese|dieses|die|keine|hierzu|dazu|darüber))*
      \s(?:information|informationen|angaben?|antwort)(?:\s(?:nicht|hierzu|dazu|darüber))?
    |(?:(?:das|dies)\s)?(?:(?:wird|ist|steht)\s)?(?:im|in\sdiesem)\s(?:dokument|text)
      \snicht(?:\s(?:angegeben|erwähnt|genannt|enthalten))?
    |nicht\s(?:angegeben|erwähnt|genannt|enthalten)|keine\s(?:angaben?|informationen|antwort)

    |(?:该|此|本|这份|这篇|所给的?|提供的)?(?:文档|文件|文章|文本|文)(?:中|里)?(?:并?没有|并?未|不)
      (?:提及|提到|包含|提供|说明|给出)(?:该|此|这些?|这一|相关|任何|的)*(?:信息|内容|答案)?
    |(?:并?没有|并?未)(?:提及|提到|给出|说明)|(?:没有|无)(?:相关|该|此)?(?:信息|答案)|无法(?:回答|确定|得知)
    """,
    re.VERBOSE,
)


def parse(step: str, text: str, cut: bool = False) -> tuple[str, ...] | str | None | Verdict:
    """Parse the reply to a step.

    Args:
      step: a key of `SCHEMAS`.
      text: the reply.
      cut: whether the server stopped at max_tokens. Incomplete JSON then counts up to its last comma: a list of
        questions loses its last one, an answer is lost. So does JSON that ends within a string in any case.

    Returns:
      For the steps that ask for questions: the distinct, non-empty ones in order; () where nothing is left to ask.
      For "answer" and "teacher": the text, or None where the reply says that the documents do not have the answer, in
      JSON or in a sentence of English, German or Chinese.
      For "paraphrase": the text.
      For the validations: the verdict, which must be explicit and unambiguous.

    Raises:
      MalformedReplyError: none of this is there.
    """
    text = _without_thinking(text)
    schema = SCHEMAS[step]
    if schema is _VERDICT:
        return _verdict(text, cut, _SAME if step == "validate_paraphrase" else _JUDGED)
    if schema is _QUESTIONS:
        return _questions(text, cut)
    if schema is _ANSWER:
        return _answer(text, cut)
    return _text(_only("paraphrase", text, cut), "the paraphrase")


def _without_thinking(text: str) -> str:
    if _BEGINS_WITH_JSON.match(text):
        return text
    *thinking, answer = _THOUGHT.split(text)
    if not thinking and _THINKS.match(text):
        raise MalformedReplyError("thinking that has no end")
    return answer


def _questions(text: str, cut: bool) -> tuple[str, ...]:
    if _EMPTY_LIST.fullmatch(text):
        return ()
    lists = _found(_question_lists, text, cut)
    questions = (_text(item, "a question", empty=True) for items in lists for item in items)
    return tuple(dict.fromkeys(question for question in questions if question))


def _answer(text: str, cut: bool) -> str | None:
    if not cut and _is_absent(text):
        return None
    value = _only("answer", text, cut)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    answer = None if value is None else _text(value, "the answer")
    return None if answer is None or _is_absent(answer) else answer


def _verdict(text: str, cut: bool, words: dict[str, bool]) -> Verdict:
    # Reads the text itself, for parsers of JSON hide contradictions: of two verdicts they keep the last.
    keys = list(_VERDICT_KEY.finditer(text))
    alone = None if keys or cut else _VERDICT_ALONE.fullmatch(text)
    values = [alone] if alone else [_VERDICT_VALUE.match(text, key.end()) for key in keys]
    verdicts = {words.get(value[1].lower()) if value else None for value in values}
    correct = verdicts.pop() if len(verdicts) == 1 else None
    if correct is None:
        raise MalformedReplyError("no clear verdict")
    try:
        reason = _text(_only("reason", text, cut), "the reason")
    except MalformedReplyError:
        reason = ""
    return Verdict(correct, reason)


def _only(name: str, text: str, cut: bool) -> Any:
    """Return the value of a key; all objects that have the key must agree."""
    values = _found(lambda value: _values_of(name, value), text, cut)
    if any(value != values[0] for value in values):
        raise MalformedReplyError(f'several values of "{name}"')
    return values[0]


def _found(read: Callable[[Any], Iterator[Any]], text: str, cut: bool) -> list[Any]:
    """Return what ``read`` yields for the JSON values in a text: at least one thing."""
    found = [item for value in _json_values(text) for item in read(value)]
    if found:
        return found
    opens, closes = _OPENS.search(text), max(text.rfind("]"), text.rfind("}"))
    if opens is None:
        raise MalformedReplyError("no JSON")
    body = text[opens.start() : closes + 1]
    if cut or not _ENDS.search(body[-_END:]):
        found = list(read(_before_the_cut(text)))
        if not any(found):
            raise MalformedReplyError("cut before anything was whole")
        return found
    try:
        found = list(read(json_repair.loads(body)))
    except (ValueError, RecursionError):
        raise MalformedReplyError("no JSON") from None
    # An empty result may come from something that json_repair dropped, as in {"questions": [...]}.
    if not found or (found[0] == [] and not any(found) and not _NOTHING.search(body)):
        raise MalformedReplyError("not the JSON that was asked for")
    return found


def _before_the_cut(text: str) -> Any:
    """Return the JSON up to the last comma outside of strings at which it can be closed, None where there is none."""
    opens = _OPENS_TEXT.search(text)
    if opens is None:
        return None
    end = len(text)
    while (end := text.rfind(",", opens.start(), end)) > 0:
        for brackets in ("]}", "}", "]", "}}"):
            try:
                return _DECODER.decode(text[opens.start() : end] + brackets)
            except (ValueError, RecursionError):
                continue
    return None


def _json_values(text: str) -> Iterator[Any]:
    """Yield the objects in a text, and a list if it comes first: a later one may be a fragment of broken JSON."""
    position = first = 0
    while opens := _OPENS.search(text, position):
        first = first or opens.end()
        try:
            value, position = _DECODER.raw_decode(text, opens.start())
        except ValueError:
            position = opens.end()
        except RecursionError:
            raise MalformedReplyError("nested too deeply") from None
        else:
            if isinstance(value, dict) or opens.end() == first:
                yield value


def _question_lists(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield value
    for item in _objects(value):
        for key, content in item.items():
            name = _plain(key)
            if name == "questions" and isinstance(content, list) and all(isinstance(one, str) for one in content):
                yield content
            elif name == "questions":
                yield from _question_lists(content)
            elif _QUESTION_KEY.fullmatch(name):
                yield [content]
            elif name == "numberofsupplementaryquestions" and str(content) == "0":
                yield []


def _values_of(name: str, value: Any) -> Iterator[Any]:
    return (content for item in _objects(value) for key, content in item.items() if _plain(key) == name)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def _plain(key: str) -> str:
    return _NOT_IN_KEYS.sub("", key).lower()


def _text(value: Any, what: str, empty: bool = False) -> str:
    """Return a string without surrounding white space.

    Args:
      value: of the JSON.
      what: names it in error messages.
      empty: whether it may be empty.
    """
    if not isinstance(value, str):
        raise MalformedReplyError(f"{what} is no text")
    text = value.strip()
    if not (text or empty):
        raise MalformedReplyError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedReplyError(f"{what} holds half of a surrogate pair") from None
    return text


def _is_absent(text: str) -> bool:
    words = " ".join(text.replace("’", "'").lower().split()).strip("\"'“”`.。!… ")
    return _ABSENT.fullmatch(words) is not None
