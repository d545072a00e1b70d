"""``hpcviews logs``: what controller, starters and engines wrote, also of clusters that have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from hpcviews import records
from hpcviews.errors import NoCluster
from hpcviews.records import Place

FOLLOW_PERIOD_S = 0.2
PIECE_BYTES = 2**20


@click.command()
@click.argument("name", required=False)
@click.option("--engine", type=click.IntRange(min=0), metavar="I", help="Only the log of engine I.")
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is written, until the cluster ends.")
def logs(name: str | None, engine: int | None, follow: bool) -> None:
    """Show the logs of a cluster.

    They tell of starts, losses and crashes. What user code prints is not there, but in the stdout of its AsyncResult;
    only output of its subprocesses and of compiled libraries is in the engine's log.

    NAME may be left out when there is only one; when there is none, the one that ended last is meant. Logs of the
    last ten clusters that ended are kept.
    """
    place = find_place(name)
    files = list_logs(place, engine)
    if engine is not None and not follow and not files[0].stat().st_size:
        # A dead engine cannot write why it died; who started it can, and says so among all logs.
        everything = f"hpcviews logs {name}" if name is not None else "hpcviews logs"
        click.echo(
            f"engine {engine} has logged nothing (what user code prints is in the stdout of its AsyncResult); "
            f"`{everything}` has the controller's and the starter's logs",
            err=True,
        )
    elif follow:
        _follow(place, files)
    else:
        for path in files:
            with path.open("rb") as file:
                _show(path, file, header=len(files) > 1)


def find_place(name: str | None) -> Place:
    """The directory of the cluster that is meant, running or ended.

    Raises:
        NoCluster: None that is known.
    """
    if name is not None:
        found = records.find_cluster(name)
        place = found.place if found is not None else records.find_ended(name)
        if place is not None:
            return place
    if name is None and not records.list_clusters():
        last = records.find_ended(None)
        if last is not None:
            return last
    return records.choose_cluster(name).place


def list_logs(place: Place, engine: int | None) -> list[Path]:
    """Log files: the controller's, the starters', the engines', empty ones left out; or one engine's.

    Raises:
        NoCluster: There is no log of that engine.
    """
    everything = sorted(place.logs.glob("*.log"), key=_order)
    if engine is None:
        return [path for path in everything if path.stat().st_size]
    # Engines are numbered through all sets, in the order of the sets.
    engines = [path for path in everything if path.name.startswith("engine-")]
    if engine >= len(engines):
        known = f"0 to {len(engines) - 1}" if engines else "none"
        raise NoCluster(f"no log of engine {engine} in {place.logs}; there are: {known}")
    return [engines[engine]]


def _order(path: Path) -> tuple[int, list[int]]:
    kind = ("controller", "set", "engine").index(path.name.split("-")[0].split(".")[0])
    return kind, [int(part) for part in path.stem.replace("-", ".").split(".") if part.isdigit()]


def _show(path: Path, file: BinaryIO, header: bool) -> bool:
    """Print what has not been read of a file; whether there was something."""
    is_first = True
    while piece := file.read(PIECE_BYTES):
        if is_first and header:
            click.echo(f"==> {path.name} <==")
        is_first = False
        sys.stdout.buffer.write(piece)
    sys.stdout.flush()
    return not is_first


def _follow(place: Place, files: Sequence[Path]) -> None:
    streams = [(path, path.open("rb")) for path in files]
    last: Path | None = None
    try:
        while True:
            # Asked before reading, so that the last words of a cluster that ends are shown.
            has_ended = not place.record.exists() or place.directory.parent.name == "ended"
            for path, stream in streams:
                if _show(path, stream, header=len(files) > 1 and path != last):
                    last = path
            if has_ended:
                return
            time.sleep(FOLLOW_PERIOD_S)  # network file systems do not tell of writes
    finally:
        for _, stream in streams:
            stream.close()
