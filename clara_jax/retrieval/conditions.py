"""Filter conditions on chunks: a small grammar over declared columns, and no other SQL.

    condition  = both { OR both }
    both       = one { AND one }
    one        = NOT one | "(" condition ")" | comparison
    comparison = column ( = | != | <> | < | <= | > | >= ) value
               | column [NOT] IN "(" value { "," value } ")"
               | column [NOT] LIKE text

A text stands in single quotes, and a quote within it is doubled; in LIKE, % stands for any characters and _ for one.
The SQL is generated from the parsed parts, so the store sees only operators and literals of this grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import checked_utf8

COLUMNS: dict[str, type] = {
    "id": str,
    "document": str,
    "title": str,
    "text": str,
    "source": str,
    "start": int,
    "end": int,
    "tokens": int,
}
LONGEST = 100_000  # characters of a condition
MOST = 1000  # comparisons and values, together
DEEPEST = 16  # parentheses and NOTs within each other
_LARGEST = 2**63
_WILD = 16  # wildcards of a LIKE
_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(-?\d+)(?![\w.])|(\w+)|(<=|>=|<>|!=|[=<>(),]))")
_COMPARED = ("=", "!=", "<>", "<", "<=", ">", ">=")


def compiled(condition: str) -> str:
    """Return the SQL of a condition on chunks, as LanceDB takes it.

    Raises:
      ClaraError: no condition, with the position of the mistake; one that is too long or too deep.
    """
    return _Reader(condition).whole()


class _Reader:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, condition: str):
        self._condition = checked_utf8(condition, "the condition", "where")
        if len(condition) > LONGEST:
            self._fail(f"it has {len(condition):,} characters, above {LONGEST:,}")
        self._at = self._parts = self._depth = 0
        self._next()

    def whole(self) -> str:
        """Parse the condition and return its SQL."""
        sql = self._either()
        if self._token:
            self._fail(f"{self._token[:40]!r} is not expected")
        return sql

    def _either(self) -> str:
        return self._joined("OR", lambda: self._joined("AND", self._one))

    def _joined(self, word: str, part: Callable[[], str]) -> str:
        parts = [part()]
        while self._took(word):
            parts.append(part())
        # Joined in halves: the depth of the SQL grows with the logarithm of their number.
        while len(parts) > 1:
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [f"({f' {word} '.join(pair)})" if len(pair) > 1 else pair[0] for pair in pairs]
        return parts[0]

    def _one(self) -> str:
        negated, opened = self._took("NOT"), False
        if not negated:
            opened = self._took("(")
        if not (negated or opened):
            return self._comparison()
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(f"more than {DEEPEST} parentheses and NOTs stand within each other")
        inner = self._one() if negated else self._either()
        if opened:
            self._need(")")
        self._depth -= 1
        return f"(NOT {inner})" if negated else inner

    def _comparison(self) -> str:
        name = self._token.lower()
        if name not in COLUMNS:
            self._fail(f"{self._token[:40]!r} is no column; these are {', '.join(COLUMNS)}")
        self._next()
        column, kind = f"`{name}`", COLUMNS[name]
        for operator in _COMPARED:
            if self._took(operator):
                return f"({column} {operator} {self._value(name, kind)})"
        negation = "NOT " if self._took("NOT") else ""
        if self._took("IN"):
            self._need("(")
            values = [self._value(name, kind)]
            while self._took(","):
                values.append(self._value(name, kind))
            self._need(")")
            return f"({column} {negation}IN ({', '.join(values)}))"
        if self._took("LIKE"):
            if kind is not str:
                self._fail(f"{name} is a number; LIKE is for texts")
            pattern = self._value(name, kind)
            if len(re.findall("[%_]+", pattern)) > _WILD:
                self._fail(f"a LIKE has more than {_WILD} wildcards")
            return f"({column} {negation}LIKE {pattern})"
        self._fail(f"{name} needs =, !=, <, <=, >, >=, IN or LIKE after it")

    def _value(self, name: str, kind: type) -> str:
        self._parts += 1
        if self._parts > MOST:
            self._fail(f"it has more than {MOST} comparisons and values")
        token = self._token
        is_text, is_number = token.startswith("'"), bool(re.fullmatch(r"-?[0-9]{1,19}", token))
        if not (is_text if kind is str else is_number and -_LARGEST < int(token) < _LARGEST):
            wanted = "a text in single quotes" if kind is str else "a whole number of 64 bits"
            self._fail(f"{name} is compared with {wanted}, not with {token[:40] or 'nothing'}")
        self._next()
        return token if is_text else str(int(token))

    def _took(self, word: str) -> bool:
        taken = self._token.upper() == word
        if taken:
            self._next()
        return taken

    def _need(self, word: str) -> None:
        if not self._took(word):
            self._fail(f"{word!r} is missing")

    def _next(self) -> None:
        """Read the next token; empty at the end."""
        self._start = self._at
        if not self._condition[self._at :].strip():
            self._token = ""
            return
        found = _TOKEN.match(self._condition, self._at)
        if found is None:
            rest = self._condition[self._at :].strip()
            self._fail(f"{rest[:20]!r} cannot be read")
        assert found.lastindex is not None  # every alternative of the pattern is a group
        self._at, self._token = found.end(), found[found.lastindex]

    def _fail(self, why: str) -> NoReturn:
        shown = ascii(self._condition[:200])
        place = f" near character {self._start + 1}" if hasattr(self, "_start") else ""
        raise ClaraError(f"where: {shown} is no condition on the columns: {why}{place}")
