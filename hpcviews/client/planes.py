"""Which way big buffers go: through shared memory ("shm"), or as frames through the controller ("frames")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpcviews.errors import PlaneUnavailable
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    from hpcviews.wire.pool import Pool

PLANES = ("auto", "shm", "frames")

HOSTS_SHOWN_MAX = 5


def find_fault(plane: Any) -> str:
    """Why a value cannot be the flag `plane`; "" if it can."""
    if isinstance(plane, str) and plane in PLANES:
        return ""
    if plane == "mpi":
        return "there is no MPI plane yet; use 'auto', or 'shm' or 'frames' to force one"
    return f"plane must be 'auto', 'shm' or 'frames', not {plane!r}"


def choose_pool(
    plane: str, pool: Pool | None, controller_room: str, engines: Iterable[m.EngineInfo], *, is_open: bool = False
) -> Pool | None:
    """Where the big buffers of a request go: into the segments of `pool`, or with None as frames.

    Args:
        plane: The flag.
        pool: This client's; None if it is in no room.
        controller_room: Whom the controller shares memory with.
        engines: Those it is for.
        is_open: Whether it may go to other engines too, which register later.
    Raises:
        PlaneUnavailable: "shm" is asked for, and cannot be.
    """
    if plane == "frames":
        return None
    if pool is None:
        if plane == "shm":
            raise PlaneUnavailable(
                "plane='shm': this client can use no shared memory (/dev/shm is missing, full, or not writable here); "
                "use plane='auto'"
            )
        return None
    room = pool.room.token
    strangers = []
    has_neighbours = False
    for info in engines:
        if info.room == room:
            has_neighbours = True
        else:
            strangers.append(info)
    if strangers and plane == "shm":
        raise PlaneUnavailable(
            f"plane='shm': {_describe_engines(strangers)} cannot open this client's shared memory: another node, "
            "another user, or a container with a /dev/shm of its own; use plane='auto', or a view of the others"
        )
    if not has_neighbours:
        return None
    if (strangers or is_open) and plane == "auto" and controller_room != room:
        # The controller hands on to strangers what it can open itself.
        return None
    return pool


def _describe_engines(infos: list[m.EngineInfo]) -> str:
    shown = ", ".join(f"{info.id} on {info.host}" for info in infos[:HOSTS_SHOWN_MAX])
    more = f" and {len(infos) - HOSTS_SHOWN_MAX} more" if len(infos) > HOSTS_SHOWN_MAX else ""
    return f"engine{'s' if len(infos) > 1 else ''} {shown}{more}"
