"""Tables that scroll sideways in their own box where the screen is narrow."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    label: str,
    classes: str = "",
    numeric: Collection[int] = (),
    notes: Sequence[str] = (),
) -> str:
    """An HTML table. Cells are HTML.

    Args:
        head: column titles.
        rows: one list of cells a row.
        label: what a screen reader announces.
        classes: further CSS classes.
        numeric: columns that are set flush right.
        notes: a text under each row, across all columns; "" for none.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        # The label names the cell where a narrow screen stacks the cells of a row.
        def attributes(i: int) -> str:
            label = f' data-label="{head[i]}"' if tag == "td" and i else ""
            return (" class=num" if i in numeric else "") + label

        return "".join(f"<{tag}{attributes(i)}>{c}</{tag}>" for i, c in enumerate(row))

    def lines(row: Sequence[str], note: str) -> str:
        if not note:
            return f"<tr>{cells('td', row)}</tr>"
        under = f'<tr class="efflab-note"><td colspan="{len(head)}">{note}</td></tr>'
        return f'<tr class="efflab-noted">{cells("td", row)}</tr>{under}'

    body = "".join(lines(r, note) for r, note in zip(rows, notes or [""] * len(rows), strict=True))
    return (
        f'<div class="efflab-table {classes}" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, numeric: Collection[int] = ()) -> None:
    """Display a table of plain texts from a page's cell; on a narrow screen each row becomes a card."""
    from IPython.display import HTML, display

    cells = [[html.escape(c) for c in row] for row in rows]
    display(HTML(table([html.escape(h) for h in head], cells, label, "efflab-stack", numeric)))
