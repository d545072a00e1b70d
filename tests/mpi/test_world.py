"""Engines as ranks of a real MPI world: run with ``mpiexec -n {1,2,4} python -m pytest --with-mpi tests/mpi``.

Each rank's main thread is an engine's; rank 0 also runs the controller and a client, in threads.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mpi4py import MPI

import hpcviews
from hpcviews import environment
from hpcviews.controller.app import Controller
from hpcviews.controller.events import SetStarted
from hpcviews.engine import world
from hpcviews.engine.loop import EngineLoop
from hpcviews.engine.namespace import make_namespace
from hpcviews.engine.output import OutputCapture
from hpcviews.engine.worker import Worker
from hpcviews.ids import SetId
from hpcviews.wire import messages as m
from hpcviews.wire.access import get_python_version, write_access

pytestmark = pytest.mark.mpi

COMM = MPI.COMM_WORLD


def test_world_of_the_right_size_is_joined() -> None:
    joined = world.join(COMM.size)
    assert (joined.rank, joined.size, joined.failure) == (COMM.rank, COMM.size, "")
    assert joined.library and "\0" not in joined.library


def test_world_of_another_size_is_refused_with_both_sizes() -> None:
    failure = world.join(COMM.size + 3).failure
    assert f"has {COMM.size} rank" in failure and f"{COMM.size + 3} were started" in failure
    assert "hpcviews launchers" in failure, "the next step is missing"


def test_rank_is_known_before_mpi_is() -> None:
    assert environment.find_mpi_rank() == (COMM.rank, COMM.rank)  # one node: the local rank is the rank


class Ranks:
    """An engine on each rank, and a client on rank 0."""

    def __init__(self, directory: Path):
        self.directory = directory

    def run(self, client_code: Callable[[hpcviews.Client], None]) -> None:
        """Run `client_code` on rank 0 beside the engines; its failure fails the test on rank 0."""
        failures: list[BaseException] = []
        if COMM.rank == 0:
            controller = self._start_controller()
            threading.Thread(target=self._run_client, args=(client_code, failures), daemon=True).start()
        COMM.Barrier()
        self._be_engine()
        if COMM.rank == 0:
            controller.join(20)
            assert not controller.is_alive()
        if failures:
            raise failures[0]

    def _start_controller(self) -> threading.Thread:
        controller = Controller(
            "mpi-test", hpcviews.__version__, ipc_path=str(self.directory / "s"), tcp_addresses=["127.0.0.1"]
        )
        controller.loop.post(SetStarted(SetId(0), "mpiexec", COMM.size, True, ""))
        for role in ("client", "engine"):
            write_access(self.directory / f"{role}.json", controller.make_access(role))
        thread = threading.Thread(target=controller.run, daemon=True)
        thread.start()
        self._controller = controller
        return thread

    def _run_client(self, client_code: Callable[[hpcviews.Client], None], failures: list[BaseException]) -> None:
        try:
            with hpcviews.Client(access=self.directory / "client.json") as rc:
                rc.wait_for_engines(COMM.size, timeout=30)
                try:
                    client_code(rc)
                finally:
                    # No process of ours starts the engines here, so nobody else would report that it is gone.
                    for engine in list(self._controller.core.engines.values()):
                        self._controller.loop.send(engine.route, m.EngineStop("test over", False))
                    rc.status()  # makes the loop take a turn
        except BaseException as error:  # noqa: BLE001 - carried to the main thread
            failures.append(error)

    def _be_engine(self) -> None:
        joined = world.join(COMM.size)
        info = m.EngineInfo(
            -1, f"u{COMM.rank}", 0, COMM.rank, joined.rank, joined.size, COMM.rank, "node", 1, get_python_version(),
            joined.library, 0.0,
        )  # fmt: skip
        main, stdout, stderr = sys.modules["__main__"], sys.stdout, sys.stderr
        worker = Worker(make_namespace(), info)
        output = OutputCapture()
        loop = EngineLoop(self.directory / "engine.json", info, "", worker, output, 30, end_thread)
        try:
            worker.attach(loop, output)
            output.attach(loop, worker)
            loop.start()
            worker.run()
        finally:
            sys.modules["__main__"], sys.stdout, sys.stderr = main, stdout, stderr


def end_thread(code: int) -> NoReturn:
    raise SystemExit(code)
