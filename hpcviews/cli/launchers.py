"""``hpcviews launchers``: what can start engines on this machine."""

from __future__ import annotations

import json

import click

from hpcviews.cli.table import render_columns


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def launchers(as_json: bool) -> None:
    """Show the schedulers and starters: which can be used on this machine, and why the others cannot."""
    from hpcviews.cluster.plugins import detect_all
    from hpcviews.cluster.processes import get_host

    reports = detect_all(get_host())
    if as_json:
        described = [
            {
                "kind": r.kind,
                "name": r.name,
                "usable": r.detection.usable,
                "version": r.detection.version,
                "path": r.detection.path,
                "why": r.detection.why,
                "from": r.origin,
            }
            for r in reports
        ]
        click.echo(json.dumps(described, indent=2))
        return
    rows = [
        (r.name, r.kind, "yes" if r.detection.usable else "no", r.detection.version or "-", r.detection.path or "-")
        for r in reports
    ]
    click.echo(render_columns(("NAME", "KIND", "USABLE", "VERSION", "PROGRAM"), rows))
    for r in reports:
        if not r.detection.usable:
            click.echo(f"{r.name}: {r.detection.why}")
