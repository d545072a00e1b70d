"""Starting, watching and ending real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcviews.cluster import processes
from hpcviews.cluster.processes import Child, make_which, run_probe, spawn
from hpcviews.errors import LaunchError
from hpcviews.procfs import read_stat
from hpcviews.testing.wait import wait_until

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "MARKED": "yes"}


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Children that a test started; whatever still runs is ended."""
    started: list[Child] = []
    yield started
    for child in started:
        child.signal(signal.SIGKILL)
        assert child.wait(10) is not None
        child.close()


def run_alone(script: str, *args: str) -> str:
    """Run a script in a process of its own: for what changes the process that does it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- finding and asking


def test_programs_beside_this_python_come_before_those_on_path(tmp_path: Path) -> None:
    for directory in ("venv", "path"):
        (tmp_path / directory).mkdir()
        for name in ("mpiexec", f"only-{directory}"):
            (tmp_path / directory / name).write_text("#!/bin/sh\n")
            (tmp_path / directory / name).chmod(0o755)
    (tmp_path / "venv/python").symlink_to(sys.executable)  # as virtual environments do; not to be followed
    which = make_which({"PATH": f"/nonexistent:{tmp_path}/path"}, str(tmp_path / "venv/python"))
    assert which("mpiexec") == tmp_path / "venv/mpiexec"
    assert which("only-path") == tmp_path / "path/only-path"
    assert which("no-such-program") is None


def test_probe_gives_output_code_and_a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    told = run_probe(("sh", "-c", 'echo "$LC_ALL,$SLURM_JOB_ID,$PMI_RANK"; echo no >&2; cat; exit 3'))
    assert (told.code, told.out, told.err) == (3, "C,,\n", "no\n")


def test_probe_of_a_missing_program_is_no_exception() -> None:
    told = run_probe(("/no/such/program",))
    assert told.code is None and "No such file" in told.err


def test_probe_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "PROBE_TIMEOUT_S", 0.3)
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    told = run_probe(("sh", "-c", f"sleep 1000 & echo $! > {pid_file}; wait"))
    assert told.code is None and "no answer within 0.3 s" in told.err
    assert time.monotonic() - began < 5
    sleeper = int(pid_file.read_text())
    wait_until(lambda: (stat := read_stat(sleeper)) is None or not stat.is_alive, 5, "the end of its child")


# ---------------------------------------------------------------- children


def test_child_has_its_own_session_log_and_nothing_of_ours(tmp_path: Path, children: list[Child]) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(secret, True)
    log = tmp_path / "log"
    script = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read(), sorted(os.listdir('/proc/self/fd')))"
    child = spawn((sys.executable, "-c", script), environment=ENVIRONMENT, log=log)
    children.append(child)
    assert child.wait(10) == 0
    os.close(secret)
    assert log.read_text() == "True  ['0', '1', '2', '3']\n"  # 3 is the directory being listed
    assert log.stat().st_mode & 0o777 == 0o600


def test_child_gets_only_the_named_files_and_environment(tmp_path: Path, children: list[Child]) -> None:
    reader, writer = os.pipe()
    script = f"import os; os.write({writer}, repr((os.environ.get('MARKED'), os.environ.get('HOME'))).encode())"
    child = spawn(
        (sys.executable, "-c", script),
        environment=ENVIRONMENT,
        log=tmp_path / "log",
        pass_fds=(writer,),
        cwd=tmp_path,
    )
    children.append(child)
    os.close(writer)
    assert child.wait(10) == 0
    assert os.read(reader, 100) == b"('yes', None)"
    os.close(reader)


def test_exit_codes_and_signals_are_told(tmp_path: Path, children: list[Child]) -> None:
    first = spawn(("sh", "-c", "exit 7"), environment=ENVIRONMENT, log=tmp_path / "log")
    second = spawn(("sleep", "1000"), environment=ENVIRONMENT, log=tmp_path / "log")
    children += [first, second]
    assert first.wait(10) == 7
    assert second.wait(0.05) is None and second.poll() is None
    assert second.signal(signal.SIGTERM)
    assert second.wait(10) == -signal.SIGTERM
    assert not second.signal(signal.SIGTERM)


@pytest.mark.parametrize("name", ["/no/such/program", "no-such-program-on-path"])
def test_program_that_is_not_there_is_a_launch_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(LaunchError, match=f"cannot run {name}: No such file or directory"):
        spawn((name,), environment=ENVIRONMENT, log=tmp_path / "log")


def test_log_that_cannot_be_written_is_a_launch_error(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/null")  # a link is not followed: it might lead anywhere
    with pytest.raises(LaunchError, match=r"its log \S+ cannot be written"):
        spawn(("true",), environment=ENVIRONMENT, log=tmp_path / "log")


def test_child_on_a_leash_dies_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from hpcviews.cluster.processes import spawn
        command = ["sh", "-c", "echo $$; exec sleep 1000"]
        spawn(command, environment=dict(os.environ), log=Path(sys.argv[1]), die_with_parent=signal.SIGKILL)
        signal.pause()
    """
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(log)])
    wait_until(lambda: log.exists() and log.read_text(), 10, "the child")
    pid = int(log.read_text())
    assert (stat := read_stat(pid)) is not None and stat.is_alive
    parent.kill()
    parent.wait(10)
    wait_until(lambda: (stat := read_stat(pid)) is None or not stat.is_alive, 5, "the child's end")


def test_program_on_a_leash_that_is_not_there_says_so(tmp_path: Path, children: list[Child]) -> None:
    child = spawn(("/no/such/program",), environment=ENVIRONMENT, log=tmp_path / "log", die_with_parent=signal.SIGKILL)
    children.append(child)
    assert child.wait(10) == 1
    assert (tmp_path / "log").read_text() == "/no/such/program: No such file or directory\n"


def test_child_that_is_let_go_goes_on_without_a_warning(tmp_path: Path) -> None:
    script = """
        import gc, os, sys, warnings
        from pathlib import Path
        from hpcviews.cluster.processes import spawn
        warnings.simplefilter("error")
        child = spawn(["sleep", "1000"], environment=dict(os.environ), log=Path(sys.argv[1]))
        pid = child.pid
        child.close()
        del child
        gc.collect()
        print(pid)
    """
    pid = int(run_alone(script, str(tmp_path / "log")))
    stat = read_stat(pid)
    assert stat is not None and stat.is_alive
    assert processes.send_signal(stat, signal.SIGKILL)


# ---------------------------------------------------------------- trees


def test_signal_is_not_sent_to_a_later_process_with_the_same_pid(tmp_path: Path, children: list[Child]) -> None:
    child = spawn(("sleep", "1000"), environment=ENVIRONMENT, log=tmp_path / "log")
    children.append(child)
    stat = read_stat(child.pid)
    assert stat is not None
    assert not processes.send_signal(stat._replace(start=stat.start - 1), signal.SIGKILL)
    assert child.wait(0.1) is None
    assert processes.send_signal(stat, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert not processes.send_signal(stat, signal.SIGKILL)


def test_names_with_brackets_and_blanks_do_not_confuse(tmp_path: Path, children: list[Child]) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    child = spawn((str(program), "1000"), environment=ENVIRONMENT, log=tmp_path / "log")
    children.append(child)
    stat = read_stat(child.pid)
    assert stat is not None and stat.ppid == os.getpid() and stat.is_alive


TREE = """
    import atexit, os, signal, sys, time
    from pathlib import Path
    from hpcviews.cluster.processes import kill_descendants, reap_orphans, spawn_tree
    from hpcviews.procfs import read_stat
    from hpcviews.testing.wait import wait_until

    atexit.register(kill_descendants)  # also when an assertion fails

    log = Path(sys.argv[1])
    # A starter with a child; a grandchild in another session; and one that was orphaned before.
    script = "sleep 1001 & setsid sleep 1002 & (setsid sleep 1003 &) ; echo ready; wait"
    tree = spawn_tree(["sh", "-c", script], dict(os.environ), log)
    other = spawn_tree(["sleep", "1004"], dict(os.environ), log)

    def names():
        try:
            return sorted(Path(f"/proc/{pid}/comm").read_text().strip() for pid in tree.find_alive())
        except OSError:
            return "one ended just now"

    # By name: between fork and exec there are more of the shell, for a moment.
    wait_until(lambda: names() == ["sh", "sleep", "sleep", "sleep"], 10, "the tree")
"""


def test_tree_is_found_and_killed_also_where_it_left_its_session_and_parent(tmp_path: Path) -> None:
    script = """
    members = tree.find_alive()
    os.kill(tree.pid, signal.SIGKILL)   # as if mpiexec were killed
    wait_until(lambda: tree.poll() is not None, 5, "its end")
    assert tree.poll() == -signal.SIGKILL
    assert sorted(tree.find_alive()) == sorted(set(members) - {tree.pid})
    tree.signal_all(signal.SIGKILL)
    wait_until(lambda: not tree.find_alive(), 5, "the end of all")
    # They were left to us: zombies until we take them, and none afterwards.
    wait_until(lambda: reap_orphans() or all(read_stat(pid) is None for pid in members), 5, "the reaping")
    wait_until(lambda: (reap_orphans(), all(read_stat(pid) is None for pid in members))[1], 5, "the reaping")
    # The other tree is none of its business, and its exit code was not taken by the reaping.
    assert other.find_alive() == [other.pid]
    other.signal_starter(signal.SIGTERM)
    wait_until(lambda: other.poll() is not None, 5, "its end")
    assert other.poll() == -signal.SIGTERM
    """
    run_alone(textwrap.dedent(TREE) + textwrap.dedent(script), str(tmp_path / "log"))


def test_reaping_leaves_the_exit_codes_of_our_children_alone(tmp_path: Path) -> None:
    script = """
    other.signal_starter(signal.SIGKILL)
    wait_until(lambda: not read_stat(other.pid).is_alive, 5, "its end")
    assert reap_orphans() == 0
    assert other.poll() == -signal.SIGKILL
    kill_descendants()
    """
    run_alone(textwrap.dedent(TREE) + textwrap.dedent(script), str(tmp_path / "log"))


def test_stopped_processes_see_sigterm(tmp_path: Path) -> None:
    script = """
    tree.signal_all(signal.SIGSTOP)
    wait_until(lambda: all(read_stat(pid).state == "T" for pid in tree.find_alive()), 5, "the stop")
    tree.signal_all(signal.SIGTERM)
    wait_until(lambda: tree.poll() is not None and not tree.find_alive(), 5, "the end of all")
    kill_descendants()
    """
    run_alone(textwrap.dedent(TREE) + textwrap.dedent(script), str(tmp_path / "log"))


def test_killing_all_descendants_leaves_none(tmp_path: Path) -> None:
    script = """
    members = tree.find_alive() + other.find_alive()
    assert kill_descendants() == []
    tree.poll(), other.poll()
    reap_orphans()
    assert [pid for pid in members if read_stat(pid) is not None] == []
    """
    run_alone(textwrap.dedent(TREE) + textwrap.dedent(script), str(tmp_path / "log"))
