"""The life of engine sets, decided from events and times alone: no process is started here."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hpcviews.cluster import engine_ends as ee
from hpcviews.cluster import engine_sets as es
from hpcviews.cluster.plugins import get_launcher
from hpcviews.cluster.spec import Allocation, Command, Detection, EngineOrder, Host, Node, ProbeOutput
from hpcviews.controller.events import (
    EndEngines,
    EndSets,
    EngineProcess,
    EnginesEnded,
    Event,
    SetExited,
    SetNotStarted,
    SetStarted,
    SignalEngines,
    StartEngines,
)
from hpcviews.errors import LaunchError, UsageError
from hpcviews.ids import EngineId, SetId

HOST = Host(
    cores=8,
    is_root=False,
    python="/opt/python",
    environment={"PATH": "/bin", "HOME": "/home/u"},
    which=lambda name: None,
    run=lambda argv: ProbeOutput(None, "", ""),
)
USABLE = Detection(usable=True)


class FakeTree:
    """A starter and what it started, as a few numbers."""

    def __init__(self, fd: int, descendants: int):
        self.fd = fd
        self.pid = 1000 + fd
        self.code: int | None = None
        self.is_reaped = False
        self.others = set(range(2000, 2000 + descendants))
        self.signals: list[str] = []
        self.is_closed = False
        self.stubborn = False

    def fileno(self) -> int:
        assert not self.is_closed
        return self.fd

    def poll(self) -> int | None:
        return self.code

    def find_alive(self) -> list[int]:
        return sorted(self.others) + ([self.pid] if self.code is None else [])

    def signal_starter(self, signum: int) -> None:
        self.signals.append(f"starter {signal.Signals(signum).name}")

    def signal_all(self, signum: int) -> None:
        self.signals.append(f"all {signal.Signals(signum).name}")
        if signum == signal.SIGKILL and not self.stubborn:
            self.others.clear()
            self.code = -signal.SIGKILL if self.code is None else self.code

    def watch(self, pid: int) -> FakeProcess | None:
        return FakeProcess(self, pid) if pid in self.others else None

    def close(self) -> None:
        self.is_closed = True


class FakeProcess:
    """One of a tree's processes, watched."""

    def __init__(self, tree: FakeTree, pid: int):
        self.tree = tree
        self.pid = pid
        self.is_closed = False

    def fileno(self) -> int:
        assert not self.is_closed
        return self.pid  # any number will do

    def has_ended(self) -> bool:
        return self.pid not in self.tree.others

    def signal(self, signum: int) -> None:
        self.tree.signals.append(f"{self.pid} {signal.Signals(signum).name}")

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if not self.tree.stubborn:
            self.tree.others.discard(self.pid)

    def close(self) -> None:
        self.is_closed = True


class World:
    """An EngineSets with fakes around it, and a clock that is set by hand."""

    def __init__(self, directory: Path):
        self.trees: list[FakeTree] = []
        self.environments: list[Mapping[str, str]] = []
        self.argvs: list[tuple[str, ...]] = []
        self.events: list[Event] = []
        self.now = 100.0
        self.wait: float | None = None
        self.logs = directory / "logs"
        self.scratch = directory / "scratch"
        self.logs.mkdir()
        self.scratch.mkdir()
        self.sets = es.EngineSets(
            access=directory / "engine.json", logs=self.logs, scratch=self.scratch, host=HOST, paths=("/a b", "/c"),
            spawn=self.spawn, reap=lambda: 0, clock=lambda: self.now,
        )  # fmt: skip

    def spawn(self, argv: tuple[str, ...], environment: Mapping[str, str], log: Path) -> FakeTree:
        self.argvs.append(argv)
        self.environments.append(environment)
        self.trees.append(FakeTree(10 + len(self.trees), descendants=3))
        return self.trees[-1]

    def start(self, n: int = 3, launcher: str = "local") -> FakeTree:
        detection = USABLE
        if launcher == "mpiexec":
            detection = Detection(usable=True, path="/m/mpiexec", facts={"flavour": "openmpi", "version": "5.0.11"})
        self.sets.start(n, get_launcher(launcher), detection)
        return self.trees[-1]

    def attach(self) -> None:
        self.sets.attach(self.events.append)

    def at(self, seconds: float) -> float:
        """Let the clock pass, as the loop would: with a tick whenever one was asked for."""
        end = self.now + seconds
        for _ in range(10_000):
            wait = self.sets.on_tick(self.now)
            assert wait is not None and wait >= 0
            if self.now + wait > end:
                break
            self.now += wait
        else:
            raise AssertionError("asks for ticks without end")
        self.now = end
        return wait

    def end_starter(self, tree: FakeTree, code: int, leaves: int = 0) -> None:
        tree.code = code
        tree.others = set(range(2000, 2000 + leaves))
        assert tree.fd in self.sets.fds()
        self.sets.on_readable(tree.fd, self.now)

    def end_engine(self, pid: int = 2000, engine_id: int = 1, at_once: bool = False) -> None:
        process = EngineProcess(EngineId(engine_id), SetId(0), pid)
        self.sets.on_order(EndEngines((process,), "a client wants it", at_once), self.now)

    def see_end(self, pid: int) -> None:
        self.trees[0].others.discard(pid)
        assert pid in self.sets.fds()
        self.sets.on_readable(pid, self.now)

    def ends(self) -> list[EnginesEnded]:
        return [event for event in self.events if isinstance(event, EnginesEnded)]

    def exits(self) -> list[SetExited]:
        return [event for event in self.events if isinstance(event, SetExited)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_start_before_attach_is_told_at_attach(world: World) -> None:
    world.start(n=3)
    assert world.events == []
    world.attach()
    assert world.events == [SetStarted(SetId(0), "local", 3, False, str(world.logs / "set-0.log"))]


def test_engines_get_paths_and_no_secret_in_argv(world: World) -> None:
    world.start(n=3)
    (argv,) = world.argvs
    assert argv[:3] == ("/opt/python", "-m", "hpcviews.engine.forkserver")
    assert argv[argv.index("--access") + 1] == str(world.logs.parent / "engine.json")
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--path"] == ["/a b", "/c"]
    assert argv[-2:] == ("--n", "3")


def test_sets_are_numbered_and_watched_each_by_its_fd(world: World) -> None:
    world.attach()
    first, second = world.start(), world.start(launcher="mpiexec")
    assert world.sets.fds() == {first.fd, second.fd}
    assert [(e.set_id, e.is_world) for e in world.events if isinstance(e, SetStarted)] == [(0, False), (1, True)]
    world.end_starter(first, 0)
    assert world.sets.fds() == {second.fd}
    assert [e.set_id for e in world.exits()] == [0]


def test_set_that_ends_when_asked_is_no_failure_and_gets_no_signal(world: World) -> None:
    world.attach()
    tree = world.start()
    world.sets.on_order(EndSets((SetId(0),), "stop"), world.now)
    world.at(2.0)
    world.end_starter(tree, 0)
    assert world.exits() == [SetExited(SetId(0), "fork ended: exit code 0", "")]
    assert tree.signals == ["all SIGCONT"] and tree.is_closed  # those that are stopped must be able to end


def test_set_that_does_not_end_gets_sigterm_then_sigkill(world: World) -> None:
    world.attach()
    tree = world.start()
    world.sets.on_order(EndSets((SetId(0),), "stop"), world.now)
    world.at(es.ASKED_GRACE_S - 0.1)
    assert tree.signals == ["all SIGCONT"]
    world.at(0.2)
    assert tree.signals == ["all SIGCONT", "starter SIGTERM"]
    world.at(es.TERM_GRACE_S - 0.3)
    assert tree.signals == ["all SIGCONT", "starter SIGTERM"]
    world.at(1.0)
    assert tree.signals[2] == "all SIGKILL"
    assert world.exits() == [SetExited(SetId(0), "fork ended: killed by SIGKILL", "")]


def test_killed_starter_takes_what_it_left_behind_along(world: World) -> None:
    world.attach()
    tree = world.start(launcher="mpiexec")
    world.end_starter(tree, -signal.SIGKILL, leaves=3)
    assert tree.signals == ["all SIGTERM"] and world.exits() == []
    world.at(es.ORPHAN_GRACE_S + 0.2)
    assert tree.signals[1] == "all SIGKILL" and tree.others == set()
    (exited,) = world.exits()
    assert exited.why.startswith("mpiexec ended: killed by SIGKILL") and exited.error == "NoShow"


def test_orphans_that_end_by_sigterm_are_not_killed(world: World) -> None:
    world.attach()
    tree = world.start()
    world.end_starter(tree, 1, leaves=1)
    tree.others.clear()
    world.at(0.1)
    assert tree.signals == ["all SIGTERM"] and len(world.exits()) == 1


def test_process_that_cannot_be_killed_is_named_and_given_up(world: World) -> None:
    world.attach()
    tree = world.start()
    tree.stubborn = True
    world.end_starter(tree, 0, leaves=1)
    world.at(es.ORPHAN_GRACE_S + es.KILL_GRACE_S + 1)
    (exited,) = world.exits()
    assert "[2000] hang in the kernel" in exited.why


def test_end_is_told_once_whatever_comes_later(world: World) -> None:
    world.attach()
    tree = world.start()
    world.end_starter(tree, 1)
    world.sets.on_order(EndSets((SetId(0), SetId(7)), "stop"), world.now)
    world.at(30.0)
    assert len(world.exits()) == 1 and tree.signals == []


def test_order_during_the_end_makes_it_wanted(world: World) -> None:
    world.attach()
    tree = world.start()
    world.end_starter(tree, 1, leaves=1)
    world.sets.on_order(EndSets((SetId(0),), "stop"), world.now)
    world.at(es.ORPHAN_GRACE_S + 1)
    assert world.exits()[0].error == ""


def test_orders_never_post_from_inside_the_core(world: World) -> None:
    world.attach()
    world.start()
    before = list(world.events)
    world.sets.on_order(EndSets((SetId(0),), "stop"), world.now)
    assert world.events == before


def test_idle_sets_ask_for_no_ticks_but_the_reaping(world: World) -> None:
    world.attach()
    world.start()
    assert world.at(1.0) == pytest.approx(es.REAP_PERIOD_S, abs=1.1)


def test_scratch_directory_is_private_and_removed_with_the_set(world: World) -> None:
    world.attach()
    tree = world.start(launcher="mpiexec")
    scratch = world.scratch / "set-0"
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert world.environments[0]["PRTE_MCA_prte_tmpdir_base"] == str(scratch)
    (scratch / "left").write_text("x")
    world.end_starter(tree, 0)
    assert not scratch.exists()


def test_program_that_cannot_be_run_leaves_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fail(argv: tuple[str, ...], environment: Mapping[str, str], log: Path) -> FakeTree:
        raise LaunchError("cannot run it")

    world.sets._spawn = fail
    world.attach()
    with pytest.raises(LaunchError, match="cannot run it"):
        world.start()
    assert world.events == [] and list(world.scratch.iterdir()) == [] and world.sets.fds() == frozenset()


def test_fork_refuses_starter_arguments(world: World) -> None:
    with pytest.raises(UsageError, match="takes no arguments of its own, got '--x'"):
        world.sets.start(2, get_launcher("fork"), USABLE, ("--x",))


# ---------------------------------------------------------------- environment


def compose(inherited: Mapping[str, str], n: int = 4, nodes: tuple[str, ...] = (), **command: object) -> dict[str, str]:
    order = EngineOrder(0, n, "python", (), Allocation(tuple(Node(name, slots=2) for name in nodes)))
    return es.compose_environment(
        replace(HOST, environment=inherited), order, Command(("x",), **command)  # type: ignore[arg-type]
    )  # fmt: skip


def test_engines_share_the_cores_of_their_node() -> None:
    assert compose({}, n=3)["OMP_NUM_THREADS"] == "2"
    assert compose({}, n=16)["OPENBLAS_NUM_THREADS"] == "1"
    assert compose({}, n=16, nodes=("a", "b", "c", "d"))["MKL_NUM_THREADS"] == "2"


def test_thread_counts_of_the_user_are_left_alone() -> None:
    assert compose({"OMP_NUM_THREADS": "5"}, n=3) == {"OMP_NUM_THREADS": "5"}


def test_variables_of_an_outer_job_are_left_out() -> None:
    outer = {"SLURM_JOB_ID": "7", "SLURMX": "kept", "OMP_NUM_THREADS": "1"}
    found = compose(outer, unset_prefixes=("SLURM_",), environment={"NEW": "1"})
    assert found == {"SLURMX": "kept", "OMP_NUM_THREADS": "1", "NEW": "1"}


# ---------------------------------------------------------------- reasons


def explain(tmp_path: Path, launcher: str = "mpiexec", **logs: str) -> tuple[str, str]:
    paths = []
    for name, text in logs.items():
        path = tmp_path / f"{name}.log"
        path.write_text(text)
        paths.append(path)
    return es.explain_end("it ended: exit code 1", paths, get_launcher(launcher))


def test_reason_names_the_cause_and_quotes_the_log_that_tells_it(tmp_path: Path) -> None:
    why, error = explain(
        tmp_path, starter="engine 0.0: exit code 1", engine="Traceback\nModuleNotFoundError: No module named 'zmq'"
    )  # fmt: skip
    assert why.splitlines()[0] == "it ended: exit code 1: the engines' Python cannot import zmq: install it there"
    assert str(tmp_path / "engine.log") in why and "Traceback" in why
    assert error == "NoShow"


def test_reason_without_a_known_cause_quotes_starter_and_first_engine(tmp_path: Path) -> None:
    why, error = explain(tmp_path, starter="strange", empty="", engine="stranger", other="not shown")
    assert "  strange\n" in why and "  stranger" in why and "not shown" not in why
    assert error == "NoShow"


def test_reason_without_any_output_says_so(tmp_path: Path) -> None:
    why, _ = explain(tmp_path, starter="", engine="")
    assert "Nothing was written" in why and "starter.log" in why


def test_reason_quotes_a_bounded_part(tmp_path: Path) -> None:
    why, _ = explain(tmp_path, starter="\n".join(f"line {i}" for i in range(10_000)))
    assert "line 9999" in why and len(why) < 3000 and "\n  line 9800\n" not in why


def test_cause_is_found_above_the_quoted_part(tmp_path: Path) -> None:
    why, error = explain(tmp_path, starter="[Errno 24] Too many open files\n" + "noise\n" * 1000)
    assert "raise `ulimit -n`" in why and error == "NotEnoughFiles"


# ---------------------------------------------------------------- single engines


@pytest.fixture
def running(world: World) -> World:
    """With one set that runs, of a starter and the processes 2000 to 2002."""
    world.attach()
    world.start()
    return world


def test_engine_that_ends_when_asked_is_told_and_gets_no_signal_but_sigcont(running: World) -> None:
    running.end_engine(2000)
    running.see_end(2000)
    assert running.ends() == [EnginesEnded((EngineId(1),))] and running.trees[0].signals == ["2000 SIGCONT"]
    assert running.sets.fds() == {running.trees[0].fd}


def test_engine_that_does_not_end_when_asked_is_killed(running: World) -> None:
    running.end_engine(2000)
    running.at(ee.ASKED_GRACE_S - 0.1)
    assert running.trees[0].signals == ["2000 SIGCONT"]
    running.at(0.2)
    assert running.trees[0].signals == ["2000 SIGCONT", "2000 SIGKILL"]
    running.see_end(2000)
    assert running.ends() == [EnginesEnded((EngineId(1),))]


def test_engine_that_is_to_be_killed_is_killed_at_once(running: World) -> None:
    running.end_engine(2000, at_once=True)
    assert running.trees[0].signals == ["2000 SIGKILL"] and running.ends() == []
    running.see_end(2000)
    assert running.ends() == [EnginesEnded((EngineId(1),))]


def test_engine_that_was_asked_can_be_killed(running: World) -> None:
    running.end_engine(2000)
    running.end_engine(2000, at_once=True)
    running.see_end(2000)
    assert running.trees[0].signals == ["2000 SIGCONT", "2000 SIGKILL"]
    assert running.ends() == [EnginesEnded((EngineId(1),))]


def test_engine_that_cannot_be_killed_is_given_up(running: World) -> None:
    running.trees[0].stubborn = True
    running.end_engine(2000, at_once=True)
    running.at(ee.KILL_GRACE_S + 0.1)
    assert running.ends() == [EnginesEnded((EngineId(1),), "its process 2000 hangs in the kernel")]


@pytest.mark.parametrize("pid", [0, 4711])
def test_engine_whose_process_is_not_here_is_told_at_once_and_given_up_later(running: World, pid: int) -> None:
    before = list(running.events)
    running.end_engine(pid)
    assert running.events == before, "inside the core"
    running.at(0.0)
    assert running.ends() == [EnginesEnded((EngineId(1),))]
    running.at(ee.ASKED_GRACE_S + 0.1)
    assert "not on the controller's machine" in running.ends()[1].why and running.trees[0].signals == []


def test_signal_reaches_processes_that_are_here(running: World) -> None:
    here, elsewhere = (EngineProcess(EngineId(i), SetId(0), pid) for i, pid in ((0, 2001), (1, 0)))
    running.sets.on_order(SignalEngines((here, elsewhere), signal.SIGCONT), running.now)
    assert running.trees[0].signals == ["2001 SIGCONT"]


def test_set_that_is_to_be_killed_gets_sigkill_at_once_also_when_it_was_asked(running: World) -> None:
    running.sets.on_order(EndSets((SetId(0),), "stop"), running.now)
    running.sets.on_order(EndSets((SetId(0),), "kill", at_once=True), running.now)
    assert running.trees[0].signals == ["all SIGCONT", "all SIGKILL"]
    running.at(0.1)
    assert running.exits() == [SetExited(SetId(0), "fork ended: killed by SIGKILL", "")]


def test_engines_are_started_again_as_they_were_with_their_ids(running: World) -> None:
    running.sets.on_order(StartEngines(SetId(0), (EngineId(1), EngineId(2))), running.now)
    running.at(0.0)
    started = running.events[-1]
    assert isinstance(started, SetStarted)
    assert (started.set_id, started.n, started.ids, started.launcher) == (1, 2, (1, 2), "local")
    assert running.argvs[1][:3] == running.argvs[0][:3] and running.argvs[1][-2:] == ("--n", "2")


def test_start_that_fails_is_told(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> FakeTree:
        raise LaunchError("no more processes are allowed")

    monkeypatch.setattr(running.sets, "_spawn", refuse)
    running.sets.on_order(StartEngines(SetId(0), (EngineId(1),)), running.now)
    running.at(0.0)
    failed = running.events[-1]
    assert isinstance(failed, SetNotStarted) and failed.error == "LaunchError" and "no more processes" in failed.why


# ---------------------------------------------------------------- any order of events


@pytest.mark.parametrize("seed", range(50))
def test_every_set_is_answered_once_in_any_order_of_events(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path)
    world.attach()
    choose = random.Random(seed)
    for _ in range(60):
        what = choose.choice(["start", "order", "exit", "time", "orphan ends"])
        running = [t for t in world.trees if not t.is_closed and t.code is None]
        if what == "start" and len(world.trees) < 5:
            world.start(launcher=choose.choice(["local", "mpiexec"]))
        elif what == "order":
            world.sets.on_order(EndSets((SetId(choose.randrange(5)),), "stop"), world.now)
        elif what == "exit" and running:
            world.end_starter(choose.choice(running), choose.choice([0, 1, -9]), leaves=choose.randrange(3))
        elif what == "orphan ends":
            for tree in world.trees:
                if tree.code is not None and tree.others:
                    tree.others.pop()
        else:
            world.at(choose.random() * 4)
    world.sets.on_order(EndSets(tuple(SetId(i) for i in range(len(world.trees))), "stop"), world.now)
    world.at(60.0)
    assert sorted(e.set_id for e in world.exits()) == list(range(len(world.trees)))
    assert all(tree.is_closed for tree in world.trees) and world.sets.fds() == frozenset()
    assert list(world.scratch.iterdir()) == []
