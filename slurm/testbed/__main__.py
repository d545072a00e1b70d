"""A real SLURM of several nodes on this one machine, for tests: ``sudo python3 slurm/testbed up``.

Each node is a set of Linux namespaces: its own network, host name, processes, /tmp and /dev/shm. The file system is
shared, as on a cluster. Nothing is written outside of one directory, nothing listens outside of the namespaces, no
systemd is needed. Debian's packages: slurm-wlm, munge, iproute2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bed import Testbed, TestbedError, find_missing

DIRECTORY = Path("/var/tmp/hpcviews-slurm")


def main() -> int:
    """Run one command; its exit code."""
    parser = argparse.ArgumentParser(prog="slurm/testbed", description=__doc__)
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help=f"where everything lives [{DIRECTORY}]")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it; what runs already stays")
    up.add_argument("--nodes", type=int, default=3, help="compute nodes node1..nodeN [3]")
    up.add_argument("--cpus", type=int, default=4, help="CPUs that each node claims to have [4]")
    up.add_argument("--conf", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf instead")
    commands.add_parser("down", help="end it and everything that jobs left; logs stay")
    for name, text in (
        ("kill", "kill -9 the daemon of a node; its jobs' processes go on"),
        ("start", "start the daemon of a node again"),
        ("cut", "pull a node's network cable"),
        ("join", "plug it in again"),
        ("crash", "a node loses its power: all its processes and its network; `up` brings it back"),
    ):
        commands.add_parser(name, help=text).add_argument("host")
    execute = commands.add_parser("exec", help="run a command on a host; `head` is the login node")
    execute.add_argument("host")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("slurm/testbed needs root, to make namespaces", file=sys.stderr)
        return 1
    missing = find_missing()
    if missing:
        print(f"slurm/testbed needs {', '.join(missing)}: apt-get install slurm-wlm munge iproute2", file=sys.stderr)
        return 1
    bed = Testbed(given.dir)
    try:
        if given.command == "up":
            bed.up(given.nodes, given.cpus, given.conf)
            print(f"ready: python3 slurm/testbed exec head sinfo   (files: {bed.directory})")
        elif given.command == "exec":
            bed.execute(given.host, given.argv)
        elif given.command == "down":
            bed.down()
        else:
            getattr(bed, f"{given.command}_node")(given.host)
    except TestbedError as error:
        print(f"slurm/testbed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
