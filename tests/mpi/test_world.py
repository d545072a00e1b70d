"""Engines as ranks of a real MPI world: run with ``mpiexec -n {1,2,4} python -m pytest --with-mpi tests/mpi``.

Each rank's main thread is an engine's; rank 0 also runs the controller and a client, in threads (a real controller is
a process of its own).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
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
from hpcviews.testing.services import NoProcesses
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
    found = environment.find_mpi_rank()
    assert found is not None and found[0] == COMM.rank
    # On one node the local ranks are the same numbers as the ranks; with Open MPI in another order.
    assert sorted(COMM.allgather(found[1])) == list(range(COMM.size))


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
            "mpi-test",
            hpcviews.__version__,
            ipc_path=str(self.directory / "s"),
            tcp_addresses=["127.0.0.1"],
            services=[NoProcesses()],
        )
        controller.loop.post(SetStarted(SetId(0), "mpiexec", COMM.size, True, ""))
        for role in ("client", "engine"):
            write_access(self.directory / f"{role}.json", controller.make_access(role))
        thread = threading.Thread(target=controller.run, daemon=True)
        thread.start()
        return thread

    def _run_client(self, client_code: Callable[[hpcviews.Client], None], failures: list[BaseException]) -> None:
        try:
            with hpcviews.Client(access=self.directory / "client.json") as rc:
                rc.wait_for_engines(COMM.size, timeout=30)
                try:
                    client_code(rc)
                finally:
                    rc.stop_cluster(timeout=10)
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
        loop = EngineThread(self.directory / "engine.json", info, "", worker, output, 30, end_thread)
        try:
            worker.attach(loop, output)
            output.attach(loop)
            loop.start()
            worker.run()
        finally:
            sys.modules["__main__"], sys.stdout, sys.stderr = main, stdout, stderr


class EngineThread(EngineLoop):
    """An engine's I/O thread that ends by itself where a real one ends the process."""

    def run(self) -> None:
        with contextlib.suppress(SystemExit):
            super().run()


def end_thread(code: int) -> NoReturn:
    raise SystemExit(code)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    path = tempfile.mkdtemp() if COMM.rank == 0 else None
    directory = Path(COMM.bcast(path))
    yield Ranks(directory)
    COMM.Barrier()
    if COMM.rank == 0:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def test_every_rank_is_an_engine_with_its_rank_as_id(ranks: Ranks) -> None:
    def check(rc: hpcviews.Client) -> None:
        assert rc.ids == list(range(COMM.size))
        assert rc[:].apply_sync(get_rank_and_size) == [(i, COMM.size) for i in range(COMM.size)]

    ranks.run(check)


def test_functions_run_collectives_on_the_main_thread(ranks: Ranks) -> None:
    def check(rc: hpcviews.Client) -> None:
        view = rc[:]
        expected = sum(range(COMM.size))
        assert view.apply_sync(reduce_ranks) == [expected] * COMM.size
        view.scatter("x", list(range(3 * COMM.size)), block=True)
        assert sum(view.apply_sync(len_of_x)) == 3 * COMM.size

    ranks.run(check)


def test_errors_name_the_rank(ranks: Ranks) -> None:
    def check(rc: hpcviews.Client) -> None:
        last = COMM.size - 1
        with pytest.raises(hpcviews.RemoteError) as caught:
            rc[last].apply_sync(divide_by_zero)
        assert caught.value.rank == last and isinstance(caught.value.__cause__, ZeroDivisionError)

    ranks.run(check)


def get_rank_and_size() -> tuple[int, int]:
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def reduce_ranks() -> Any:
    assert threading.current_thread() is threading.main_thread()
    # With arrays: for Python objects mpi4py first duplicates the communicator, collectively and holding the GIL,
    # which here would stop the controller's thread too.
    total = np.zeros(1)
    MPI.COMM_WORLD.Allreduce(np.full(1, float(MPI.COMM_WORLD.rank)), total)
    return total[0]


def len_of_x() -> int:
    return len(sys.modules["__main__"].x)  # type: ignore[attr-defined]


def divide_by_zero() -> None:
    raise ZeroDivisionError("on purpose")
