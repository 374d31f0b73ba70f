"""Sections of a configuration: frozen dataclasses that pydantic validates, and messages of one line about bad values.

A field's type says in words what is allowed (`allowed`), for messages and for the tables of docs/training.md; the
string below a field describes it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError, core_schema

from clara_jax.errors import ClaraError, did_you_mean, nearest_name, warn_line

T = TypeVar("T")

# Types of fields. Numbers are not made of strings, nor whole numbers of others; a list passes for a tuple.
Bool = Annotated[bool, Field(strict=True), "True or False"]
Text = Annotated[str, Field(strict=True), "a string"]
Whole = Annotated[int, Field(strict=True), "a whole number"]
Count = Annotated[int, Field(strict=True, ge=1), "a whole number, at least 1"]
Natural = Annotated[int, Field(strict=True, ge=0), "a whole number, zero or positive"]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), "a number, positive and finite"]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), "a number, zero or positive, finite"]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1), "a number in [0, 1]"]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1), "a number in [0, 1)"]
Name = Annotated[str, Field(strict=True, min_length=1), "a string that is not empty"]
Names = Annotated[tuple[Name, ...], "a tuple of strings, none empty"]
Counts = Annotated[tuple[Count, ...], "a tuple of whole numbers, each at least 1"]
Positives = Annotated[tuple[Positive, ...], "a tuple of positive numbers"]


class OneOf:
    """The mark of a field that holds one of some names, which another module lists."""

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.names))


_CONFIG = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)
_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


@typing.dataclass_transform(frozen_default=True)
def section(name: str = "", old_names: Mapping[str, str] = MappingProxyType({})) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class a frozen dataclass, validated by pydantic, with errors of one line.

    A section has mappings for the sections in it, or made ones. What a type cannot say is checked in
    ``__post_init__``, by `check` or `require`.

    Args:
      name: the section's, below "config" or a stage, for messages.
      old_names: names that its fields had, and the paths that they have now; each works, with a warning.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)
        validate, fields = made.__init__, [field.name for field in dataclasses.fields(made)]

        def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807 - it becomes the class's
            values = dict(zip(fields, args, strict=False)) | values
            parts = ("config", name, values.get("name", "") if "name" in fields else "")
            where = ".".join(part for part in parts if part and isinstance(part, str))
            values = in_groups(values, old_names, where)
            try:
                validate(self, **values)
            except pydantic.ValidationError as error:
                raise _in_words(error, made, where, old_names) from None

        made.__init__ = __init__
        return made

    return decorate


def checked(cls: type) -> BeforeValidator:
    """Return a validator for a field that holds a dataclass of another module, which may be given as a mapping.

    Its fields are as strict as those of a section.
    """
    validated: Any = pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)(cls)

    def make(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = validated(**value)
        return cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(cls)})

    return BeforeValidator(make)


def group_paths(groups: Mapping[str, str]) -> dict[str, str]:
    """Return old name -> path, of names by their group, "old:new" where they changed."""
    pairs = ((group, *name.partition(":")[::2]) for group, names in groups.items() for name in names.split())
    return {old: f"{group}.{new or old}" for group, old, new in pairs}


def in_groups(values: Mapping[str, Any], paths: Mapping[str, str], where: str, warn: bool = True) -> dict[str, Any]:
    """Return the fields of a section with those that have old names in their groups.

    Args:
      values: by name, groups as mappings.
      paths: old name -> path, as of `group_paths`.
      where: the section, for messages: "config.scp".
      warn: whether an old name gets a warning.

    Raises:
      ClaraError: a field that is given by both of its names.
    """
    result = {name: value for name, value in values.items() if name not in paths}
    for old in values.keys() & paths.keys():
        group, _, new = paths[old].partition(".")
        fields = result.get(group, {})
        if not isinstance(fields, Mapping):
            raise ClaraError(f"{where}.{group} is {fields!r}; it must be a section")
        if new in fields:
            raise ClaraError(f"{where}.{old} and {where}.{group}.{new} are one field; give the latter alone")
        result[group] = {**fields, new: values[old]}
    if warn:
        for old in values:
            if old in paths:
                warn_old_name(f"{where}.{old}", f"{where}.{paths[old]}")
    return result


def warn_old_name(old: str, new: str) -> None:
    """Warn that a field has another name."""
    warn_line(f"{old} is now {new}; the old name will go in the next version")


def check(section: Any, field: str, condition: bool, rule: str) -> None:
    """Check a field of a section, in its ``__post_init__``; whoever makes the section gives the message its place.

    Args:
      section: the instance.
      field: its name.
      condition: whether the value is good.
      rule: what a good value is.
    """
    if not condition:
        raise PydanticCustomError("rule", "{rule}", {"field": field, "value": getattr(section, field), "rule": rule})


def require(condition: bool, where: str, field: str, value: Any, rule: str) -> None:
    """Check a field's value.

    Args:
      condition: whether the value is good.
      where: the field's section with a dot after it; "" for a field of the run.
      field: its name.
      value: its value, for the message.
      rule: what a good value is, for the message.

    Raises:
      ClaraError: the condition does not hold.
    """
    if not condition:
        raise ClaraError(f"config.{where}{field} is {value!r}; {rule}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all known ones."""
    known = tuple(known)
    return did_you_mean(name, known) or f"; known are {', '.join(known)}"


def nearest_field(name: str, known: Iterable[str], paths: Mapping[str, str], where: str) -> str:
    """Return the end of a message about an unknown field: the nearest one of its section, or of all.

    Args:
      name: the unknown name.
      known: fields of the section.
      paths: of the fields of all sections, by their names and old names.
      where: what the paths are below; "" for nothing.
    """
    known = tuple(known)
    if name in paths or not nearest_name(name, known):
        near = nearest_name(name, paths)
        if near:
            return f"; did you mean {'.'.join(filter(None, (where, paths[near])))}?"
    return nearest(name, known)


def allowed(hint: Any) -> str:
    """Return what a field of a type may be, in words."""
    if hint is None or hint is type(None):
        return "None"
    if typing.get_origin(hint) is Annotated:
        marks = reversed(typing.get_args(hint)[1:])  # a type that narrows another comes after it
        chosen = next((mark for mark in marks if isinstance(mark, str | OneOf)), "a section")
        return chosen if isinstance(chosen, str) else "one of " + ", ".join(chosen.names)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return ", or ".join(map(allowed, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return _WORDS.get(hint, "a section")


def hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their marks."""
    return typing.get_type_hints(cls, include_extras=True)


def field_paths(cls: type) -> dict[str, str]:
    """Return the paths of all fields below a section by their last names, those of its groups among them."""
    found = {}
    for name, hint in hints(cls).items():
        inner = _bare(hint)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            found |= {last: f"{name}.{path}" for last, path in field_paths(inner).items()}
        else:
            found[name] = name
    return found


def _bare(hint: Any) -> Any:
    """Return a type without its marks, and without None as an alternative."""
    if typing.get_origin(hint) is Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (option for option in typing.get_args(hint) if option is not type(None))
        return _bare(inner)
    return hint


def _hint_at(cls: type, location: Iterable[str | int]) -> Any:
    """Return the type at a place below a section: of a field, or of an entry of a tuple."""
    hint: Any = cls
    for part in location:
        inner = _bare(hint)
        if isinstance(part, str):
            hint = hints(inner)[part]
        else:
            items = typing.get_args(inner)
            hint = items[0] if items[-1] is Ellipsis else items[part]
    return hint


def _in_words(error: pydantic.ValidationError, cls: type, where: str, old_names: Mapping[str, str]) -> ClaraError:
    """Return the first of a section's errors, unknown names before all, as a message of one line."""
    found = error.errors(include_url=False)
    first = min(found, key=lambda one: one["type"] != "unexpected_keyword_argument")
    location, kind, value = first["loc"], first["type"], first["input"]
    if kind == "missing" and isinstance(location[-1], int):  # an entry of a tuple of fixed length
        location, kind = location[:-1], "too_short"
    place = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    if kind == "unexpected_keyword_argument":
        known = hints(_bare(_hint_at(cls, location[:-1])))
        near = nearest_field(str(location[-1]), known, field_paths(cls) | dict(old_names), where)
        return ClaraError(f"{place}: there is no such field{near}")
    if kind == "missing":
        return ClaraError(f"{place} is missing")
    if kind == "rule":
        rule = first.get("ctx", {})
        return ClaraError(f"{place}.{rule['field']} is {rule['value']!r}; {rule['rule']}")
    return ClaraError(f"{place} is {value!r}; it must be {allowed(_hint_at(cls, location))}")
