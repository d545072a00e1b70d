"""The starter `fork`, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rig import SOURCES, Rig

from hpcviews.procfs import read_stat
from hpcviews.testing.wait import wait_until


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(map(str, SOURCES))}


def test_engines_have_their_index_log_and_name(rig: Rig) -> None:
    rig.start_ready(3, "local")
    assert {i: (e.index, e.local_rank, e.rank) for i, e in rig.engines.items()} == {i: (i, i, None) for i in range(3)}
    for engine in rig.engines.values():
        assert Path(f"/proc/{engine.pid}/comm").read_text().strip() == f"engine 0.{engine.index}"
        log = rig.logs / f"engine-0.{engine.index}.log"
        assert log.exists() and log.stat().st_mode & 0o777 == 0o600
    assert (rig.logs / "set-0.log").stat().st_mode & 0o777 == 0o600
    rig.stop()
    assert rig.find_left() == []


def test_engines_are_told_apart_by_chance(rig: Rig) -> None:
    rig.start_ready(4, "local")
    drawn = rig.run(
        "import random, numpy\n(random.random(), numpy.random.rand(), numpy.random.default_rng().random())", 0, 1, 2, 3
    )
    assert len(set(drawn)) == 4
    columns = list(zip(*(text.strip("()").split(",") for text in drawn), strict=True))
    assert all(len(set(column)) == 4 for column in columns)


def test_engines_share_the_cores(rig: Rig) -> None:
    rig.start_ready(2, "local", OMP_NUM_THREADS="")
    cores = len(os.sched_getaffinity(0))
    assert rig.run("import os\nos.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS']", 0) == [
        repr((str(max(1, cores // 2)), str(max(1, cores // 2))))
    ]


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os._exit(0)", "import sys; sys.exit(5)"])
def test_one_engine_dying_leaves_the_others_alone(rig: Rig, how: str) -> None:
    rig.start_ready(3, "local")
    (seq,) = rig.execute(f"import os; {how}", 1)
    if "sys.exit" in how:
        rig.pump_until(lambda: seq in rig.results, 5, "the error")  # user code that exits is user code that raises
        assert rig.lost == {}
    else:
        rig.pump_until(lambda: 1 in rig.lost, 1.0, "the loss of engine 1 within a second")
        assert rig.set is not None and rig.set.state == "degraded"
    assert rig.run("40 + 2", 0, 2) == ["42", "42"]


def test_fork_server_reports_how_engines_ended(rig: Rig) -> None:
    rig.start_ready(2, "local")
    pid = rig.engines[1].pid
    os.kill(pid, signal.SIGSEGV)
    log = rig.logs / "set-0.log"
    wait_until(log.read_text, 5, "the report")
    assert log.read_text() == f"engine 0.1 (pid {pid}): killed by SIGSEGV\n"


def test_all_engines_dying_ends_the_set_with_the_reason(rig: Rig) -> None:
    rig.start_ready(2, "local")
    rig.execute("import os; os._exit(9)", 0, 1)
    over = rig.wait_over(5)
    assert (over.state, over.error) == ("failed", "NoShow")
    assert (
        over.why.startswith("fork ended: exit code 1") and "engine 0.0 (pid" in over.why and "exit code 9" in over.why
    )


def test_killed_fork_server_takes_its_engines_along(rig: Rig) -> None:
    rig.start_ready(3, "local")
    os.kill(rig.find_starter(), signal.SIGKILL)
    over = rig.wait_over(5)
    assert over.state == "failed" and over.why.startswith("fork ended: killed by SIGKILL")
    assert rig.find_descendants() == []


def test_killed_controller_takes_hung_engines_along(rig: Rig) -> None:
    rig.start_ready(2, "local")
    os.kill(rig.engines[1].pid, signal.SIGSTOP)
    os.kill(rig.pid, signal.SIGKILL)
    wait_until(lambda: not rig.find_left(), 10, "the end of all")


def test_stopped_engine_does_not_keep_the_cluster_from_ending(rig: Rig) -> None:
    rig.start_ready(2, "local")
    os.kill(rig.engines[0].pid, signal.SIGSTOP)
    rig.stop()
    assert rig.find_left() == []


def test_what_user_code_left_running_ends_with_the_set(rig: Rig) -> None:
    rig.start_ready(1, "local")
    code = """
        import subprocess
        # A daemon of the thorough kind: its own session, orphaned, with an empty environment.
        subprocess.run(["sh", "-c", "setsid env -i sleep 1000 >/dev/null 2>&1 & setsid sleep 1001 >/dev/null 2>&1 &"])
    """
    rig.run("\n".join(line.strip() for line in code.splitlines()), 0)
    sleepers = wait_until(lambda: [s.pid for s in rig.find_descendants() if s.ppid == rig.pid][1:], 5, "the orphans")
    rig.stop()
    wait_until(lambda: all(read_stat(pid) is None for pid in sleepers), 5, "the end of the orphans")


def test_zombies_that_user_code_orphans_are_reaped(rig: Rig) -> None:
    rig.start_ready(1, "local")
    (text,) = rig.run(
        "import subprocess\nsubprocess.run(['sh', '-c', 'sleep 0.1 & echo $!'], capture_output=True).stdout", 0
    )
    pid = int(text.strip("b'\\n"))
    wait_until(lambda: read_stat(pid) is None, 15, "the reaping")


def test_python_without_hpcviews_is_a_named_failure(rig: Rig, tmp_path: Path) -> None:
    # Only the fork server's interpreter is without it, as if on another node another Python were first on PATH.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'hpcviews.engine.forkserver' in sys.orig_argv: sys.modules['hpcviews'] = None\n"
    )
    rig.start(2, "local", PYTHONPATH=":".join(map(str, (tmp_path, *SOURCES))))
    rig.connect()
    over = rig.wait_over(10)
    assert over.error == "NoShow" and "does not have hpcviews: install it there" in over.why


REFUSED_FORK = """
import errno, os, signal, sys
from pathlib import Path
from hpcviews.engine import forkserver

real_fork, forked = os.fork, []

def fork():
    if forked:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    pid = real_fork()
    if pid == 0:
        signal.pause()
    forked.append(pid)
    return pid

os.fork = fork
code = forkserver.main(["--access", sys.argv[1], "--n", "2"])
assert not Path(f"/proc/{forked[0]}").exists()
sys.exit(code)
"""


def test_fork_that_is_refused_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    # In a process of its own: a fork server waits for its signals, which in pytest another thread might take.
    access = tmp_path / "engine.json"
    access.touch()
    ran = subprocess.run(
        [sys.executable, "-c", REFUSED_FORK, str(access)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert (ran.returncode, ran.stderr) == (
        1,
        "cannot fork engine 1, number 1 of 2 here: Resource temporarily unavailable\n",
    )


def test_fork_server_told_to_end_while_it_waits_for_the_controller_forks_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hpcviews.engine.forkserver",
        "--access",
        str(tmp_path / "engine.json"),
        "--n",
        "2",
    ]
    server = subprocess.Popen(command, env=environment())
    # Blocked in its mask: from then on a SIGTERM is waited for, and does not just kill it.
    bit = 1 << (signal.SIGTERM - 1)
    status = Path(f"/proc/{server.pid}/status")

    def blocks_sigterm() -> bool:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("SigBlk:")]
        return bool(int(line.split()[1], 16) & bit)

    wait_until(blocks_sigterm, 10, "the fork server to wait for signals")
    server.terminate()
    assert server.wait(10) == 0
