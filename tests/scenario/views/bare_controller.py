"""A controller alone, without launchers: the views' tests start the engines themselves."""

import signal
import sys
from pathlib import Path

import hpcviews
from hpcviews.controller.app import Controller
from hpcviews.controller.archive import Archive
from hpcviews.controller.finished import Bounds, Finished
from hpcviews.prctl import set_parent_death_signal
from hpcviews.wire.access import write_access

if __name__ == "__main__":
    # A test run that is killed leaves nothing: engines end when their controller is gone.
    set_parent_death_signal(signal.SIGKILL)
    directory = Path(sys.argv[1])
    archive = Archive(directory / "requests.sqlite")
    controller = Controller(
        "bare", hpcviews.__version__, ipc_path=str(directory / "k"), tcp_addresses=["127.0.0.1"], archive=archive
    )
    finished = controller.core.finished = Finished(Bounds(records_max=int(sys.argv[2])))
    finished.has_archive = finished.is_archiving = True
    write_access(directory / "engine.json", controller.make_access("engine"))
    write_access(directory / "client.json", controller.make_access("client"))
    controller.run()
