"""Templates of the pages that commands write: text is escaped, and a name that is not there is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(module_file: str, name: str, **filters: Callable[..., Any]) -> Template:
    """``templates/NAME`` beside a module.

    Args:
        module_file: ``__file__`` of the module.
        name: File in its ``templates``.
        filters: For the template, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(module_file).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
