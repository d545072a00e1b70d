"""A controller with one engine set and nothing else, as a process: DIRECTORY N LAUNCHER [STARTER ARGUMENTS…].

Runs under the Python of the MPI that is tested, so it imports nothing of the tests.
"""

import logging
import signal
import sys
import time
from pathlib import Path

from hpcviews.cluster import plugins
from hpcviews.cluster.engine_sets import EngineSets
from hpcviews.cluster.processes import get_host


def main(directory: Path, n: int, launcher_name: str, options: tuple[str, ...]) -> None:
    began = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("logs", "scratch"):
        (directory / name).mkdir(mode=0o700)
    host = get_host()
    launcher = plugins.get_launcher(launcher_name)
    detection = plugins.detect(launcher, host)
    print(f"detected after {time.monotonic() - began:.3f} s", file=sys.stderr)
    sets = EngineSets(
        access=directory / "engine.json", logs=directory / "logs", scratch=directory / "scratch", host=host
    )
    sets.start(n, launcher, detection, options)

    from hpcviews import __version__
    from hpcviews.controller.app import Controller
    from hpcviews.wire.access import write_access

    controller = Controller(
        "tested", __version__, ipc_path=str(directory / "s"), tcp_addresses=["127.0.0.1"], services=[sets]
    )
    write_access(directory / "engine.json", controller.make_access("engine"))
    write_access(directory / "client.json", controller.make_access("client"))
    print(f"serving after {time.monotonic() - began:.3f} s", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        controller.run()
    finally:
        sets.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], tuple(sys.argv[4:]))
