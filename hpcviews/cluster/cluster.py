"""`Cluster`: start a controller and engines, use them, stop them, from Python."""

from __future__ import annotations

import atexit
import importlib
import operator
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex

import msgspec

from hpcviews import environment, records
from hpcviews.cluster.handshake import wait_readiness
from hpcviews.cluster.lifeline import Lifeline
from hpcviews.errors import (
    ConnectError,
    EngineError,
    LaunchError,
    LauncherUnavailable,
    NameInUse,
    NoCluster,
    NoShow,
    UsageError,
)
from hpcviews.names import check_name, make_name
from hpcviews.records import Found, Liveness, Place, Record
from hpcviews.wire.access import read_host_id

if TYPE_CHECKING:
    from hpcviews.client.client import Client
    from hpcviews.cluster.batch import BatchScheduler, JobRequest
    from hpcviews.cluster.processes import Child
    from hpcviews.cluster.spec import Host, Launcher
    from hpcviews.cluster.submission import OnJob, Submission

START_TIMEOUT_S = 120.0
"""Local engines are there in a second; 64 MPI ranks whose Python comes from a slow file server need a minute."""

STOP_TIMEOUT_S = 20.0
"""See ending.STOP_TIMEOUT_S."""

NAME_ATTEMPTS = 100

OnProgress = Callable[[int, int], object]
"""Called with how many engines are ready, and how many there will be."""


class Cluster:
    """A controller and its engines.

    As a context manager it starts them, gives a connected `Client`, and stops them at the end of the block::

        with hpcviews.Cluster(n=4) as rc:
            rc[:].apply_sync(os.getpid)

    A cluster that was started here ends with this Python process, however that ends, unless `detach` is called.
    May be used from any thread, by one at a time; not in a forked child.

    Args:
        n: Number of engines; None: one per core that this process may use, or in a batch job as many as it has tasks
            (cores, where it names no tasks).
        launcher: What starts them: a name that ``hpcviews launchers`` lists; None: the batch job that this process
            is in, on all its nodes, else this machine.
        name: Name of the cluster; None: one is made up.
        interface: Network interface or address that the controller listens on, or "all"; None: this machine only
            where all engines are on it, else all.
        options: Arguments for the launcher's program, verbatim.
        timeout: Seconds that `start` waits for the engines; where a job is submitted, from when it runs.
        path: Directories for the engines' sys.path; None: the directory of this program's main script.
        job: What the job is to have, where the launcher submits one (on a login node); see `JobRequest`.
    Raises:
        UsageError: `n` or another argument is not what it must be.
        UnknownLauncher: There is no such launcher; the message lists those that exist.
    """

    def __init__(
        self,
        n: SupportsIndex | None = None,
        launcher: str | None = None,
        *,
        name: str | None = None,
        interface: str | None = None,
        options: Iterable[str] = (),
        timeout: float = START_TIMEOUT_S,
        path: Iterable[str | os.PathLike[str]] | None = None,
        job: JobRequest | None = None,
    ):
        from hpcviews.cluster.plugins import choose_launcher
        from hpcviews.cluster.processes import get_host

        host = get_host()
        chosen = choose_launcher(launcher, host)
        allocation = chosen.scheduler.allocation(host)
        self._request: JobRequest | None = None
        slots = 0
        if allocation is None:
            self._request, slots = _check_job(chosen, host, job, has_n=n is not None)
        elif job is not None:
            raise UsageError(
                f"launcher {chosen.name!r} submits no job here, so there is nothing to ask a job for: "
                + ("this is inside one" if allocation.job else "name a batch system's launcher, e.g. slurm")
            )
        else:
            slots = allocation.slots
        self.n = _check_n(n, slots)
        self.launcher = chosen.name
        if name is not None:
            check_name(name)
        if isinstance(options, str):
            raise UsageError(f"options must be a list of arguments, not the text {options!r}")
        if not timeout > 0:
            raise UsageError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self._name = name
        self._interface = interface
        self._options = tuple(options)
        self._timeout_s = timeout
        self._paths = _find_main_paths() if path is None else tuple(str(Path(p).absolute()) for p in path)
        self._found: Found | None = None
        self._lifeline: Lifeline | None = None
        self._child: Child | None = None
        self._submission: Submission | None = None
        self._client: Client | None = None
        self._pid = os.getpid()

    @classmethod
    def attach(cls, name: str | None = None) -> Cluster:
        """A cluster that runs already; it does not end with this process.

        Args:
            name: Which; None: the one the environment names (HPCVIEWS_CLUSTER), or the only one that runs.
        Raises:
            NoCluster: There is none, or several to choose from.
        """
        found = records.choose_cluster(name)
        if found.liveness is Liveness.DEAD:
            records.find_access(name)  # raises, saying so
        record = found.record
        self = cls.__new__(cls)
        self.n, self.launcher = record.n, record.launcher
        self._name, self._interface, self._options = record.name, record.interface, record.options
        self._timeout_s, self._paths = START_TIMEOUT_S, record.paths
        self._found, self._pid = found, os.getpid()
        self._lifeline = self._child = self._client = None
        self._request = self._submission = None
        return self

    # ------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        """Its name.

        Raises:
            UsageError: It was given none, and has not been started yet.
        """
        if self._name is None:
            raise UsageError("this cluster gets a name when it is started")
        return self._name

    @property
    def directory(self) -> Path:
        """Where its record and logs are.

        Raises:
            NoCluster: It does not run.
        """
        return self._get_found().place.directory

    @property
    def is_running(self) -> bool:
        """Whether it was started or attached to, and not stopped here. Does not ask it."""
        return self._found is not None

    def __repr__(self) -> str:
        engines = f"{self.n} engine{'s' if self.n != 1 else ''} by {self.launcher}"
        state = "not running"
        if self._found is not None:
            state = "running" if self._lifeline is None else "running, ends with this process"
        return f"<Cluster {self._name or '(unnamed)'}: {engines}, {state}>"

    # ------------------------------------------------------------ start and stop

    @property
    def submits(self) -> bool:
        """Whether `start` submits a job."""
        return self._request is not None

    def render_job(self) -> str:
        """The script of the job that `start` would submit; nothing is submitted, and no name is taken.

        Raises:
            UsageError: No job would be submitted, or the batch system cannot do what is asked.
        """
        from hpcviews.cluster.submission import render_script

        scheduler, request = self._get_batch()
        record = self._make_record(self._name or make_name())
        return render_script(scheduler, Place(records.open_home() / "clusters" / record.name), record, request)

    def validate_job(self) -> str:
        """Ask the batch system whether it would take the job; what it says.

        Raises:
            SubmitRefused: It would not; the message says why.
            UsageError: No job would be submitted, or the batch system cannot do what is asked.
        """
        from hpcviews.cluster.jobs import Jobs

        script = self.render_job()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "job.sh"
            path.write_text(script)
            return Jobs(self._get_batch()[0]).validate(path)

    def _get_batch(self) -> tuple[BatchScheduler, JobRequest]:
        from hpcviews.cluster.batch import BatchScheduler
        from hpcviews.cluster.plugins import get_launcher

        scheduler = get_launcher(self.launcher).scheduler
        if self._request is None or not isinstance(scheduler, BatchScheduler):
            raise UsageError(f"launcher {self.launcher!r} submits no job here")
        return scheduler, self._request

    def start(
        self,
        on_progress: OnProgress | None = None,
        on_job: OnJob | None = None,
        on_interrupt: Callable[[], bool] | None = None,
    ) -> Cluster:
        """Start controller and engines; return when all engines are ready.

        After any failure, also Ctrl-C, everything that was started is gone again, and logs are kept
        (``hpcviews logs NAME``).

        Args:
            on_progress: Called whenever engines have become ready.
            on_job: Called with a line of text whenever the job that was submitted does something else.
            on_interrupt: Asked at Ctrl-C whether a submitted job is to be cancelled; if not, it stays in the queue,
                the KeyboardInterrupt goes on, and ``hpcviews status NAME`` tells of it.
        Returns:
            This cluster.
        Raises:
            NameInUse: A cluster of this name runs.
            LaunchError: It could not be started; the subclass and the message say why.
        """
        client = self._start(on_progress, on_job, on_interrupt)
        client.close()
        return self

    def _start(
        self,
        on_progress: OnProgress | None,
        on_job: OnJob | None = None,
        on_interrupt: Callable[[], bool] | None = None,
    ) -> Client:
        self._check_process()
        if self._found is not None:
            raise UsageError(f"the cluster {self.name!r} has been started already")
        deadline = time.monotonic() + self._timeout_s
        given_name = self._name
        self._claim()
        try:
            if self._request is not None:
                self._submit(self._request, on_job or (lambda text: None))
                deadline = time.monotonic() + self._timeout_s
            else:
                self._spawn(deadline)
            client = self._connect(deadline)
            try:
                self._wait_for_engines(client, deadline, on_progress)
            except BaseException:
                client.close()
                raise
        except BaseException as error:
            name = self.name
            is_submitted = self._submission is not None and self._submission.job
            if isinstance(error, KeyboardInterrupt) and is_submitted and on_interrupt and not on_interrupt():
                self._submission = None
                raise
            self._end(STOP_TIMEOUT_S)
            self._name = given_name
            if isinstance(error, LaunchError):
                raise type(error)(f"{error}\nIts logs are kept: `hpcviews logs {name}`") from None
            raise
        atexit.register(self._stop_at_exit)
        return client

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """End engines and controller, and return when they are gone. Again is fine.

        Args:
            timeout: Seconds that they get to end by themselves; then they are killed.
        """
        self._check_process()
        if self._found is None:
            return
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._child is not None:
            self._end(timeout)
            return
        atexit.unregister(self._stop_at_exit)
        self._submission = None
        from hpcviews.cluster.ending import end_cluster

        found = records.find_cluster(self.name)
        if found is not None and found.record.started == self._found.record.started:
            end_cluster(found, timeout)
        self._found = None

    def detach(self) -> None:
        """Let the cluster go on when this process ends; ``hpcviews stop NAME`` ends it."""
        self._check_process()
        if self._lifeline is not None:
            self._lifeline.detach()
            self._lifeline = None
        self._submission = None
        atexit.unregister(self._stop_at_exit)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the controller of a cluster that was started here has ended.

        Returns:
            False when it still runs after `timeout` seconds.
        """
        return self._child is None or self._child.wait(timeout) is not None

    def client(self, timeout: float = 10.0) -> Client:
        """A new client of this cluster, connected.

        Raises:
            NoCluster: It does not run.
            ControllerUnreachable: Its controller did not answer within `timeout` seconds.
        """
        self._check_process()
        from hpcviews.client.client import Client

        return Client(access=self._get_found().place.access("client"), timeout=timeout)

    def __enter__(self) -> Client:
        if self._found is None:
            self._client = self._start(None)
        else:
            self._client = self.client()
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A forked child that leaves the block (sys.exit, an exception) does not end its parent's cluster.
        if os.getpid() == self._pid:
            self.stop()

    # ------------------------------------------------------------ inside

    def _get_found(self) -> Found:
        if self._found is None:
            raise NoCluster("this cluster does not run; call start() first, or use it as `with Cluster(...) as rc:`")
        return self._found

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"this Cluster belongs to process {self._pid}, and this is process {os.getpid()}, forked from it; "
                "use hpcviews.Client() or Cluster.attach() here"
            )

    def _claim(self) -> None:
        """Take a name on disk, one that is free if none was given."""
        dead = records.find_cluster(self._name) if self._name is not None else None
        if dead is not None and dead.liveness is Liveness.DEAD:
            from hpcviews.cluster.ending import end_cluster

            end_cluster(dead)  # more than its record may be left
        for attempt in range(NAME_ATTEMPTS):
            name = self._name or make_name()
            record = self._make_record(name)
            try:
                place = records.claim(record)
            except NameInUse:
                if self._name is not None or attempt == NAME_ATTEMPTS - 1:
                    raise
            else:
                self._name = name
                self._found = Found(place, record, Liveness.STARTING)
                return

    def _make_record(self, name: str) -> Record:
        import hpcviews

        started = records.find_process_start(os.getpid())
        assert started is not None, "this process is alive"
        return Record(
            name=name,
            host=socket.gethostname(),
            host_id=read_host_id(),
            pid_namespace=records.read_pid_namespace(),
            pid=os.getpid(),
            pid_started=started,
            python=sys.executable,
            version=hpcviews.__version__,
            launcher=self.launcher,
            n=self.n,
            started=time.time(),
            cwd=str(Path.cwd()),
            interface=self._interface,
            options=self._options,
            paths=self._paths,
        )

    def _submit(self, request: JobRequest, on_job: OnJob) -> None:
        from hpcviews.cluster.plugins import get_launcher
        from hpcviews.cluster.submission import Submission

        found = self._get_found()
        # From now on the batch system has it: this process's end does not make it a dead cluster.
        record = msgspec.structs.replace(found.record, pid=0, pid_started=0)
        records.write_record(found.place, record)
        self._found = Found(found.place, record, Liveness.QUEUED)
        self._submission = Submission(get_launcher(self.launcher), found.place, record, request)
        self._submission.submit(on_job)
        self._submission.wait_for_controller(self._timeout_s, on_job)

    def _spawn(self, deadline: float) -> None:
        from hpcviews.cluster.processes import spawn

        place = self._get_found().place
        self._lifeline = Lifeline()
        ready, far_ready = os.pipe()
        try:
            argv = [sys.executable, "-m", "hpcviews.cluster", str(place.directory)]
            argv += ["--ready-fd", str(far_ready), "--lifeline", str(self._lifeline.far_fd)]
            self._child = spawn(
                argv,
                environment=environment.advise_huge_pages(environment.get_environment()),
                log=place.controller_log,
                pass_fds=(far_ready, self._lifeline.far_fd),
            )
            os.close(far_ready)
            far_ready = -1
            self._lifeline.hand_over()
            # It takes a tenth of a second to come up, and this process needs what a client needs anyway.
            importlib.import_module("hpcviews.client.client")

            wait_readiness(ready, max(0.0, deadline - time.monotonic()))
        except EOFError:
            raise LaunchError(f"the controller ended at once:\n{_read_end(place)}") from None
        except TimeoutError:
            raise LaunchError(f"the controller was not ready {self._say_late()}:\n{_read_end(place)}") from None
        finally:
            os.close(ready)
            if far_ready >= 0:
                os.close(far_ready)

    def _connect(self, deadline: float) -> Client:
        try:
            return self.client(max(1.0, deadline - time.monotonic()))
        except ConnectError as error:
            if self._child is not None and self._child.poll() is not None:
                text = f"the controller ended at once:\n{_read_end(self._get_found().place)}"
                raise LaunchError(text) from error
            raise

    def _wait_for_engines(self, client: Client, deadline: float, on_progress: OnProgress | None) -> None:
        try:
            rest_s = max(0.0, deadline - time.monotonic())
            # Who is told of the progress shows it in some way already.
            interactive = None if on_progress is None else False
            client.wait_for_engines(self.n, timeout=rest_s, interactive=interactive, on_progress=on_progress)
        except TimeoutError:
            raise NoShow(f"only {len(client.ids)} of {self.n} engines were ready {self._say_late()}") from None
        except (EngineError, ConnectError) as error:
            place = self._get_found().place
            if self._submission is not None:
                raise NoShow(self._submission.explain_end()) from error
            raise LaunchError(f"the cluster broke while it was starting: {error}\n{_read_end(place)}") from None

    def _say_late(self) -> str:
        return f"after {self._timeout_s:g} s (if this machine is just slow, allow for more: timeout=, --timeout)"

    def _end(self, timeout_s: float) -> None:
        """Take down what was started here, as far as it got; never raises for what is gone already."""
        from hpcviews.cluster.ending import clear_left_over, end_cluster

        found, child = self._found, self._child
        atexit.unregister(self._stop_at_exit)
        if self._submission is not None and found is not None:
            self._found = self._submission = None
            end_cluster(records.find_cluster(found.record.name) or found, timeout_s)
            return
        if child is not None:
            if self._lifeline is not None:
                self._lifeline.stop()
            else:
                child.signal(signal.SIGTERM)
            if child.wait(timeout_s) is None:
                child.signal(signal.SIGKILL)
                child.wait()
            if child.code != 0 and found is not None:
                clear_left_over(found)
            child.close()
        elif self._lifeline is not None:
            self._lifeline.close()
        self._found = self._child = self._lifeline = None
        if found is not None:
            records.retire(found.place, found.record)

    def _stop_at_exit(self) -> None:
        # A forked child runs the exit handlers it inherited; the cluster is its parent's.
        if os.getpid() == self._pid:
            self.stop()


def count_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _check_job(launcher: Launcher, host: Host, job: JobRequest | None, *, has_n: bool) -> tuple[JobRequest, int]:
    """What to ask a batch system for, and how many engines that makes if nobody said."""
    from hpcviews.cluster.batch import BatchScheduler, JobRequest

    scheduler = launcher.scheduler
    if not isinstance(scheduler, BatchScheduler):
        raise UsageError(
            f"launcher {launcher.name!r} can only be used inside an allocation of {scheduler.name}, and this is none"
        )
    request = job or JobRequest()
    request.check()
    slots = (request.nodes or 0) * (request.engines_per_node or 0)
    if not slots and not has_n:
        raise UsageError("how many engines shall the job be for? Give --n N, or --nodes N and --per-node M")
    detection = scheduler.detect(host)
    if not detection.usable:
        raise LauncherUnavailable(f"launcher {launcher.name!r}: {detection.why}")
    return request, slots


def _check_n(n: SupportsIndex | None, slots: int) -> int:
    if n is None:
        return slots or count_cores()
    try:
        number = operator.index(n)
    except TypeError:
        raise UsageError(f"n, the number of engines, must be a whole number, not {n!r}") from None
    if number < 1 or isinstance(n, bool):
        raise UsageError(f"n, the number of engines, must be at least 1, not {n!r}")
    return number


def _find_main_paths() -> tuple[str, ...]:
    """Where this program's own modules are, so that functions from them can be imported by the engines."""
    if not sys.path or getattr(sys.flags, "safe_path", False):
        return ()
    first = Path(sys.path[0] or ".").absolute()
    return (str(first),) if first.is_dir() else ()


def _read_end(place: Place) -> str:
    from hpcviews.cluster.causes import read_tail

    return read_tail(place.controller_log)
