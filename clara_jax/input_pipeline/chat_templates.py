"""A base model's chat template: an untrusted Jinja program, rendered within bounds, the same on every day.

Templates come with the models. The sandbox keeps them from files and attributes, but not from loops of 10^10 steps or
strings of 10^10 characters, so they are rendered by `clara_jax.confined`. They may read the clock (Llama 3.1 does): it
stands still here, for token ids that depend on the day would make another run, another cache and other shapes each day.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clara_jax.confined import GIB, Confined, ExceededError
from clara_jax.errors import ClaraError

DATE = datetime.datetime(2024, 7, 26)  # what Llama's templates take where there is no clock
SECONDS, SECONDS_EACH = 10.0, 0.02  # of a core, for one call and for each of its chats; a chat takes a tenth of a ms
_LONGEST_TEMPLATE = 1_000_000  # characters
_CLOCK = re.compile(r"\bstrftime_now\b")
_RENDERING = Confined(GIB)

Messages = Sequence[Mapping[str, str]]


class ChatTemplateError(ClaraError):
    """An error that a template raises for the messages that it was given, as some do for the system role."""


class ChatTemplate:
    """A renderer of chats.

    Attributes:
      source: the template.
      reads_clock: whether its output would depend on the day; it is given `DATE`.
    """

    def __init__(self, tokenizer: Any):
        """Open the chat template of a tokenizer.

        Args:
          tokenizer: of transformers; its special tokens are known to the template by their names.

        Raises:
          ClaraError: it has no template, or several and none by the name "default".
        """
        source = tokenizer.chat_template
        if isinstance(source, Mapping):
            if "default" not in source:
                raise ClaraError(
                    f"the base model's chat templates are {', '.join(map(repr, sorted(source)))}; name one of them "
                    '"default" in tokenizer_config.json'
                )
            source = source["default"]
        if not isinstance(source, str) or not source:
            raise ClaraError(
                "the base model's tokenizer has no chat template; use an instruction-tuned base, or add a "
                "chat_template.jinja"
            )
        if len(source) > _LONGEST_TEMPLATE:
            raise ClaraError(f"the base model's chat template has {len(source):,} characters; no model needs that")
        self.source, self.reads_clock = source, bool(_CLOCK.search(source))
        self._variables = json.loads(json.dumps(dict(tokenizer.special_tokens_map), default=str))

    def render(self, chats: Sequence[Messages], generate: bool) -> list[str]:
        """Return the text of each chat.

        Args:
          chats: the messages of each.
          generate: render up to where the assistant's next message begins.

        Raises:
          ChatTemplateError: the template fails on one of them.
          ClaraError: it takes more time or memory than any template needs.
        """
        arguments = self.source, self._variables, [[dict(message) for message in chat] for chat in chats], generate
        try:
            result = _RENDERING.call(f"{__name__}:render_all", arguments, SECONDS + SECONDS_EACH * len(chats))
        except ExceededError as error:
            raise ClaraError(f"the base model's chat template takes {error}; use another one") from None
        if "error" in result:
            raise ChatTemplateError(f"the base model's chat template fails: {result['error']}")
        return result["texts"]


def render_all(source: str, variables: dict[str, Any], chats: list[Messages], generate: bool) -> dict[str, Any]:
    """Render chats to "texts", or return the reason in "error"; `ChatTemplate.render` runs this in another process."""
    try:
        template = _compiled(source)
        fields = variables | {"tools": None, "documents": None, "add_generation_prompt": generate}
        fields["enable_thinking"] = False
        texts = [template.render(messages=chat, **fields) for chat in chats]
        for text in texts:
            text.encode()  # half a surrogate pair is no text that a tokenizer takes
        return {"texts": texts}
    except MemoryError:
        raise
    except Exception as error:  # a program may raise whatever it likes
        import jinja2

        message = str(error)[:300]
        readable = message and isinstance(error, jinja2.TemplateError)
        return {"error": message if readable else f"{type(error).__name__}: {message}"}


@functools.lru_cache(16)
def _compiled(source: str):
    """Return the template in the environment that transformers gives it, except for the clock and chance."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """An extension that accepts the tag around the assistant's messages."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def chance(*_):
        raise jinja2.exceptions.TemplateError("it draws lots; token ids must not depend on chance")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters |= {"tojson": tojson, "random": chance}
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": DATE.strftime, "lipsum": chance}
    return environment.from_string(source)
