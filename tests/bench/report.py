"""The table: for a terminal (rich), for a README (Markdown), for programs (JSON). Pure."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tests.bench.measures import OURS, Row

SHORT = {"ipyparallel": "ipyparallel", "process_pool": "process pool"}


def render_cells(row: Row, peers: tuple[str, ...]) -> list[str]:
    """Title, ours, each peer's with our ratio to it, aims, verdict."""
    cells = [row.measure.title, "–" if row.ours is None else row.measure.render(row.ours)]
    for peer in peers:
        text = "–"
        if peer in row.peers:
            text = row.measure.render(row.peers[peer])
            if peer in row.ratios:
                text += f"  ({render_ratio(row.ratios[peer])})"
        cells.append(text)
    cells.append(", ".join(row.aims) or "–")
    cells.append({True: "met", False: "NOT met: " + ", ".join(row.missed), None: "–"}[row.met])
    return cells


def render_ratio(ratio: float) -> str:
    """×12 for twelve times better, ×0.5 for half as good."""
    return f"×{ratio:.0f}" if ratio >= 10 else f"×{ratio:.2g}"


def make_table(rows: list[Row], peers: tuple[str, ...], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title, caption="medians; (×n): hpcviews is n times better")
    for name in ("measure", OURS, *(SHORT[peer] for peer in peers)):
        table.add_column(name, justify="left" if name == "measure" else "right", no_wrap=True)
    table.add_column("aim")
    table.add_column("met")
    for row in rows:
        style = {True: "green", False: "red", None: ""}[row.met]
        *cells, verdict = render_cells(row, peers)
        table.add_row(*cells, f"[{style}]{verdict}[/]" if style else verdict)
    return table


def make_markdown(rows: list[Row], peers: tuple[str, ...]) -> str:
    """For README.md."""
    head = ["", OURS, *(SHORT[peer] for peer in peers), "aim", "met"]
    lines = [head, ["---"] * len(head)] + [render_cells(row, peers) for row in rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)


def make_json(rows: list[Row], raw: dict[str, dict[str, list[float]]], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, with the raw repetitions."""
    return {
        "about": about,
        "rows": [
            {
                "measure": row.measure.name,
                "unit": row.measure.unit,
                "hpcviews": row.ours,
                "peers": dict(row.peers),
                "times_better": dict(row.ratios),
                "aims": list(row.aims),
                "met": row.met,
            }
            for row in rows
        ],
        "raw": raw,
    }
