"""Computed numbers in a page's text."""

from __future__ import annotations

from collections.abc import Mapping


def put(values: Mapping[str, str]) -> None:
    """Make texts available to a page as {glue:text}`name`. A number keeps its unit on the same line."""
    from myst_nb import glue

    for name, text in values.items():
        glue(name, text.replace(" ", "\u00a0"), display=False)
