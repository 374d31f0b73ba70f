"""Pages for people: each is one file that asks for nothing outside of it, has no script, and forbids both to whatever
came into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def render(package: str, name: str, filters: Mapping[str, Callable] | None = None, **fields: Any) -> str:
    """A page, HTML.

    Args:
      package: has the template among its ``templates``; it extends this package's ``page.html``.
      name: of the template.
      filters: of the template's own.
      fields: what the template shows, "title" among it; text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(own, "templates") for own in (package, "clara_jax")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(name).render(**fields)
