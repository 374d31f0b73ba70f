"""Filter conditions on chunks: a small grammar over declared columns, and no other SQL.

    condition  = both { OR both }
    both       = one { AND one }
    one        = NOT one | "(" condition ")" | comparison
    comparison = column ( = | != | <> | < | <= | > | >= ) value
               | column [NOT] IN "(" value { "," value } ")"
               | column [NOT] LIKE text
    column     = name | "fields." name | "fields." in double quotes: any name

A text stands in single quotes, and a quote within it is doubled; in LIKE, % stands for any characters and _ for one.
A document's field (`clara_jax.text.documents.DocumentMetadata.fields`) is compared as a text or as a number, as the
value is; a document without the field meets no comparison with it. The SQL is generated from the parsed parts, so the
store sees only operators and literals of this grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
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
    "path": str,
    "type": str,
    "modified": str,
}
FIELDS = "fields"  # "fields.NAME" is a field of the document
LONGEST = 100_000  # characters of a condition
MOST = 1000  # comparisons and values, together
DEEPEST = 16  # parentheses and NOTs within each other
_LARGEST = 2**63
_WILD = 16  # wildcards of a LIKE
_TOKEN = re.compile(
    r"""\s*(?:('(?:[^']|'')*')"""
    r"""|(-?\d+(?:\.\d+)?)(?![\w.])"""
    r"""|((?i:fields)\.(?:\w+|"[^"]+")|\w+)"""
    r"""|(<=|>=|<>|!=|[=<>(),]))"""
)
_LONGEST_NAME = 200  # characters of a field
_NUMBER = r"-?[0-9]{1,19}(\.[0-9]{1,19})?"
_COMPARED = ("=", "!=", "<>", "<", "<=", ">", ">=")


def compiled(condition: str, columns: Collection[str] = (*COLUMNS, FIELDS)) -> str:
    """Return the SQL of a condition on chunks, as LanceDB takes it.

    Args:
      condition: in the grammar of this module.
      columns: that the store has, of `COLUMNS` and `FIELDS`.

    Raises:
      ClaraError: no condition, with the position of the mistake; one that is too long or too deep.
    """
    return _Reader(condition, columns).whole()


class _Reader:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, condition: str, columns: Collection[str]):
        self._columns = columns
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
        name, column, kind = self._column()
        for operator in _COMPARED:
            if self._took(operator):
                return f"({column(self._token)} {operator} {self._value(name, kind)})"
        negation = "NOT " if self._took("NOT") else ""
        if self._took("IN"):
            self._need("(")
            compared = column(self._token)
            # Of a field, the first value says what it is compared as.
            kind = kind or (str if self._token.startswith("'") else float)
            values = [self._value(name, kind)]
            while self._took(","):
                values.append(self._value(name, kind))
            self._need(")")
            return f"({compared} {negation}IN ({', '.join(values)}))"
        if self._took("LIKE"):
            if kind is int:
                self._fail(f"{name} is a number; LIKE is for texts")
            compared, pattern = column(self._token), self._value(name, str)
            if len(re.findall("[%_]+", pattern)) > _WILD:
                self._fail(f"a LIKE has more than {_WILD} wildcards")
            return f"({compared} {negation}LIKE {pattern})"
        self._fail(f"{name} needs =, !=, <, <=, >, >=, IN or LIKE after it")

    def _column(self) -> tuple[str, Callable[[str], str], type | None]:
        """Read a column: its name, its SQL for a value that it is compared with, and its type.

        A document's field has none: what it is compared with decides.
        """
        token = self._token
        name, field = token.lower(), token[len(FIELDS) + 1 :].strip('"')
        if name.startswith(f"{FIELDS}.") and FIELDS in self._columns:
            if len(field) > _LONGEST_NAME:
                self._fail(f"the name of a field has more than {_LONGEST_NAME} characters")
            quoted = field.replace("'", "''")
            text = f"json_get_string(`{FIELDS}`, '{quoted}')"
            self._next()
            return token[:40], lambda value: text if value.startswith("'") else f"TRY_CAST({text} AS DOUBLE)", None
        if name not in COLUMNS or name not in self._columns:
            self._fail(f"{token[:40]!r} is no column; these are {', '.join(self._shown())}")
        self._next()
        return name, lambda value: f"`{name}`", COLUMNS[name]

    def _shown(self) -> list[str]:
        return [f"{FIELDS}.NAME" if name == FIELDS else name for name in self._columns]

    def _value(self, name: str, kind: type | None) -> str:
        self._parts += 1
        if self._parts > MOST:
            self._fail(f"it has more than {MOST} comparisons and values")
        token = self._token
        is_text, is_number = token.startswith("'"), bool(re.fullmatch(_NUMBER, token))
        is_whole = is_number and "." not in token and -_LARGEST < int(token) < _LARGEST
        if not {str: is_text, int: is_whole, float: is_number, None: is_text or is_number}[kind]:
            wanted = {str: "a text in single quotes", int: "a whole number of 64 bits", float: "a number"}
            expected = wanted.get(kind, "a text in single quotes or a number")
            self._fail(f"{name} is compared with {expected}, not with {token[:40] or 'nothing'}")
        self._next()
        return str(int(token)) if kind is int else token

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
