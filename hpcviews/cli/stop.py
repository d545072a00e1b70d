"""``hpcviews stop``: end clusters, also hung and dead ones."""

from __future__ import annotations

import click

from hpcviews import records
from hpcviews.cli import exit_codes
from hpcviews.errors import HpcviewsError, UsageError


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="End all clusters of yours.")
@click.option(
    "--timeout",
    type=float,
    default=20.0,
    show_default=True,
    metavar="S",
    help="Seconds to end by itself, before it is killed.",
)
@click.option(
    "--forget", is_flag=True, help="Remove the record of a cluster whose host is gone for good, too."
)  # fmt: skip
def stop(name: str | None, everything: bool, timeout: float, forget: bool) -> int:
    """End a cluster, and clear away what dead ones left.

    NAME may be left out when there is only one.
    """
    from hpcviews.cluster.ending import end_cluster

    if everything and name is not None:
        raise UsageError("give a NAME or --all, not both")
    if not everything:
        found = records.choose_cluster(name)
        click.echo(f"{found.record.name}: {end_cluster(found, timeout, forget=forget)}")
        return exit_codes.OK
    code = exit_codes.OK
    for found in records.list_clusters():
        try:
            click.echo(f"{found.record.name}: {end_cluster(found, timeout, forget=forget)}")
        except (HpcviewsError, OSError) as error:  # the others are to be ended all the same
            click.echo(f"hpcviews: {found.record.name}: {error}", err=True)
            code = exit_codes.get_exit_code(error)
    return code
