"""Tables that scroll sideways in their own box where the screen is narrow."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], label: str, classes: str = "", numeric: Collection[int] = ()
) -> str:
    """An HTML table. Cells are HTML.

    Args:
        head: column titles.
        rows: one list of cells a row.
        label: what a screen reader announces.
        classes: further CSS classes.
        numeric: columns that are set flush right.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=num' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(row))

    body = "".join(f"<tr>{cells('td', r)}</tr>" for r in rows)
    return (
        f'<div class="efflab-table {classes}" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, numeric: Collection[int] = ()) -> None:
    """Display a table of plain texts from a page's or a notebook's cell."""
    from IPython.display import HTML, display

    cells = [[html.escape(c) for c in row] for row in rows]
    display(HTML(table([html.escape(h) for h in head], cells, label, numeric=numeric)))
