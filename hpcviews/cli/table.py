"""Columns of text."""

from __future__ import annotations

from collections.abc import Sequence


def render_columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a head, as wide as they need to be: never cut, so that `grep` and `awk` find everything."""
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts)
    return "\n".join(line.rstrip() for line in lines)
