"""File descriptors: whether the controller has enough of them for n engines, asked before anything starts."""

from __future__ import annotations

import resource

from hpcviews.errors import NotEnoughFiles

FILES_FIXED = 128
"""What the controller needs at any size: libraries, logs, listening sockets, libzmq's own, some 64 clients."""

FILES_PER_ENGINE = 2
"""Its connection, and a second one for a moment: when it reconnects, or tries several of our addresses."""

FILES_GENEROUS = 65_536
"""How far the soft limit is raised unasked. Not to the hard one: in containers that is often 2^30, and programs
that close every possible descriptor before exec then take minutes to start."""


def count_files_needed(n: int) -> int:
    """How many file descriptors a controller of n engines needs."""
    return FILES_FIXED + FILES_PER_ENGINE * n


def ensure_files(n: int) -> int:
    """Raise this process's soft limit as far as n engines need it, and the hard limit allows.

    Children inherit it: mpiexec needs a few for each of its ranks too.

    Returns:
        The soft limit now.
    Raises:
        NotEnoughFiles: It does not suffice; the message has the numbers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count_files_needed(n)
    wanted = max(soft, needed, FILES_GENEROUS)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if limit < needed:
        fitting = max(0, (hard - FILES_FIXED) // FILES_PER_ENGINE)
        raise NotEnoughFiles(
            f"{n} engines need {needed} open files in the controller, and the hard limit here is {hard} "
            f"(`ulimit -Hn`): ask for at most {fitting} engines, or have the limit raised "
            "(nofile in /etc/security/limits.conf, LimitNOFILE= of a service)"
        )
    if limit != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit
