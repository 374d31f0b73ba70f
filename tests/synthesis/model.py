"""A language model that is none: it reads documents of sentences "The X of Y is Z." and does each step as it should,
the same whenever it is asked the same."""

from __future__ import annotations

import json
import re
from functools import cache

from clara_jax.synthesis.prompts import PromptTemplates
from clara_jax.synthesis.replies import SCHEMAS

_FACT = re.compile(r"The (\w+) of (\w+) is ([\w ]+)\.")
_FIELDS = {
    "document": "-",
    "documents": ["-"],
    "question": "-",
    "answer": "-",
    "pairs": [("-", "-")],
    "paraphrase": "-",
}


def fact(thing: str, of: str, value: str) -> str:
    return f"The {thing} of {of} is {value}."


def document(number: int) -> str:
    """Five facts, other ones for each number."""
    land = f"Land{chr(97 + number // 26)}{chr(97 + number % 26)}"
    things = {"capital": "Sel", "river": "Orrin", "queen": "Mira", "mountain": "Tol", "harbour": "Bay"}
    return " ".join(fact(thing, land, f"{value} {land}son") for thing, value in things.items())


@cache
def steps() -> dict[str, str]:
    """Which step a system message belongs to."""
    prompts = PromptTemplates.load()
    return {
        prompts.messages(step, language, **_FIELDS)[0][1]: step for step in SCHEMAS for language in prompts.languages
    }


def step_of(messages) -> tuple[str, dict[str, str]]:
    """The step that messages (role, content) are for, and what stands in the tags of the last one."""
    fields = re.findall(r"<(\w+)>\n?(.*?)\n?</\1>", messages[-1][1], re.DOTALL)
    return steps()[messages[0][1]], dict(fields)


def answer(messages) -> str:
    """The reply, JSON."""
    step, fields = step_of(messages)
    facts = _FACT.findall(fields.get("document", fields.get("documents", "")))
    simple = [f"What is the {thing} of {of}?" for thing, of, _ in facts]
    double = [
        f"What are the {a[0]} and the {b[0]} of {a[1]}?" for a, b in zip(facts, facts[1:], strict=False) if a[1] == b[1]
    ]
    if step == "simple_questions":
        return json.dumps({"questions": simple[:2]})
    if step == "complex_questions":
        return json.dumps({"questions": double[:1]})
    if step.startswith("more_"):
        left = [question for question in (simple if "simple" in step else double) if question not in fields["pairs"]]
        return json.dumps({"questions": left[:2]})
    if step in ("answer", "teacher"):
        asked = [value for thing, of, value in facts if thing in fields["question"] and of in fields["question"]]
        return json.dumps({"answer": " and ".join(asked) or None})
    if step == "paraphrase":
        paraphrase = " ".join(f"{value} belongs to {of}, being its {thing}." for thing, of, value in facts)
        return json.dumps({"paraphrase": paraphrase})
    return json.dumps({"reason": "it is so", "verdict": "correct"})
