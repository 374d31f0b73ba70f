"""HTML pages: each is one file without scripts and external resources; a content security policy forbids both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def render(package: str, name: str, filters: Mapping[str, Callable] | None = None, **fields: Any) -> str:
    """Render a template as HTML.

    Args:
      package: whose ``templates`` folder has the template; it extends ``page.html`` of this package.
      name: of the template.
      filters: additional filters for the template.
      **fields: variables of the template, among them "title"; text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each, "templates") for each in (package, "clara_jax")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(name).render(**fields)
