"""The command line with real processes: what a user types, and what happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from household import Household, find_pids, read_line

import hpcviews
from hpcviews.cluster.interfaces import read_interfaces
from hpcviews.testing.wait import wait_until

LAUNCHERS = ["local", "mpiexec"]


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_run_runs_an_unchanged_script_on_a_cluster_of_its_own(household: Household, launcher: str) -> None:
    script = household.write(
        "job.py",
        "import os, sys, hpcviews\n"
        "rc = hpcviews.Client()\n"
        "print(sys.argv[1:], sorted(rc.ids), len(set(rc[:].apply_sync(os.getpid))))\n"
        "print(sys.stdin.read())\n"
        "sys.exit(7)\n",
    )
    done = household.run("run", "--n", "3", "--launcher", launcher, script, "a b", "--n", "x")
    assert done.stdout == "['a b', '--n', 'x'] [0, 1, 2] 3\n\n", done.stderr
    assert done.stderr == ""
    assert done.returncode == 7


def test_engines_import_modules_that_lie_beside_the_script(household: Household) -> None:
    (household.work / "sub").mkdir()
    (household.work / "sub" / "mine.py").write_text("def f():\n    return 'found'\n")
    household.write("sub/job.py", "import hpcviews, mine\nprint(hpcviews.Client()[:].apply_sync(mine.f))\n")
    done = household.run("run", "--n", "2", "sub/job.py")
    assert done.stdout == "['found', 'found']\n", done.stderr


def test_run_takes_modules_and_code_as_python_does(household: Household) -> None:
    household.write("mod.py", "import sys, hpcviews\nprint(len(hpcviews.Client()), sys.argv[1:])\n")
    assert household.run("run", "--n", "1", "-m", "mod", "-m", "x").stdout == "1 ['-m', 'x']\n"
    assert household.run("run", "--n", "1", "-c", "import sys; print(sys.argv)", "y").stdout == "['-c', 'y']\n"


def test_run_says_which_signal_killed_the_script(household: Household) -> None:
    done = household.run("run", "--n", "1", "-c", "import os; os.kill(os.getpid(), 11)")
    assert done.returncode == 128 + 11
    assert "killed by SIGSEGV" in done.stderr


def test_script_that_leaves_the_client_open_ends_all_the_same(household: Household) -> None:
    done = household.run("run", "--n", "1", "-c", "import hpcviews; rc = hpcviews.Client(); 1/0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_script_does_not_run_when_the_engines_cannot_start(household: Household) -> None:
    flag = household.work / "ran"
    script = household.write("job.py", f"open({str(flag)!r}, 'w')\n")
    done = household.run("run", "--n", "2", "--launcher", "mpiexec", "--launcher-arg=--no-such-option", script)
    assert done.returncode == 4
    assert not flag.exists()
    assert "no-such-option" in done.stderr, "the launcher's own words"
    assert "Its logs are kept: `hpcviews logs" in done.stderr


# ---------------------------------------------------------------- start, status, list, logs, stop


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_started_cluster_goes_on_without_the_shell(household: Household, launcher: str) -> None:
    done = household.run("start", "--n", "3", "--launcher", launcher, "--name", "night-run")
    assert done.returncode == 0, done.stderr
    assert 'hpcviews.Client("night-run")' in done.stdout
    assert done.stderr == "", "no progress bar off a terminal"

    status = household.ask("status", "night-run")
    assert (status["name"], status["state"]) == ("night-run", "running")
    assert [e["id"] for e in status["engines"]] == [0, 1, 2]
    assert [e["rank"] for e in status["engines"]] == ([0, 1, 2] if launcher == "mpiexec" else [None] * 3)
    assert {e["state"] for e in status["engines"]} == {"idle"}
    assert {status["controller"]["pid"], *(e["pid"] for e in status["engines"])} <= set(household.find_processes())
    (listed,) = household.ask("list")
    assert (listed["name"], listed["state"], listed["n"]) == ("night-run", "running", 3)

    with hpcviews.Client() as rc:  # the only one there is
        assert rc[:].apply_sync(lambda: 6 * 7) == [42] * 3
        rc[1].execute("print('from engine one')", block=True)

    logs = household.run("logs", "night-run")
    assert "engine set 0: ready" in logs.stdout
    silent = household.run("logs", "night-run", "--engine", "1")
    assert (silent.stdout, silent.returncode) == ("", 0)
    assert "logged nothing" in silent.stderr and "`hpcviews logs night-run`" in silent.stderr
    assert "0 to 2" in household.run("logs", "night-run", "--engine", "9").stderr

    shared_memory = household.find_shared_memory()
    assert household.run("stop", "night-run").stdout == "night-run: stopped\n"
    assert household.find_processes() == {}
    assert [path for path in shared_memory if path.exists()] == []
    assert household.run("status", "night-run").returncode == 3
    ended = household.run("logs", "night-run").stdout
    assert "SIGTERM came" in ended, "logs outlive the cluster"
    assert "killed" not in ended, "engines that end with the cluster were not lost"
    assert "SIGTERM came" in household.run("logs").stdout


def test_people_read_what_json_says(household: Household) -> None:
    household.start("--n", "2")
    assert "set 0       ready: 2 of 2 engines by local" in household.run("status").stdout
    assert household.run("list").stdout.splitlines()[1].split()[:4] == ["one", "running", "2", "local"]
    household.run("stop")


def test_quiet_start_prints_the_name_for_scripts(household: Household) -> None:
    name = household.run("start", "--n", "1", "--quiet").stdout.strip()
    assert household.run("stop", name).returncode == 0


def test_stop_all_ends_all(household: Household) -> None:
    household.start("--n", "1", name="one")
    household.start("--n", "1", name="two")
    assert household.run("stop").returncode == 3, "with several, one must be named"
    assert household.run("stop", "--all").stdout == "one: stopped\ntwo: stopped\n"
    assert household.run("stop", "--all").stdout == ""


def test_foreground_stays_until_interrupted(household: Household) -> None:
    started = household.begin("start", "--n", "2", "--name", "one", "--foreground")
    assert read_line(started) == "cluster one is ready: 2 engines by local"
    assert started.poll() is None
    started.send_signal(2)
    assert started.wait(20) == 0


def test_foreground_ends_when_the_cluster_is_stopped(household: Household) -> None:
    started = household.begin("start", "--n", "1", "--name", "one", "--foreground")
    read_line(started)
    assert household.run("stop", "one").returncode == 0
    assert started.wait(20) == 0


def test_logs_can_be_followed_until_the_cluster_ends(household: Household) -> None:
    household.start("--n", "1")
    follower = household.begin("logs", "one", "-f")
    wait_until(lambda: "ready" in read_line(follower), 20, "the log so far")
    household.run("stop", "one")
    out, _ = follower.communicate(timeout=20)
    assert out.rstrip().endswith("hpcviews.cluster.app: ended")
    assert follower.returncode == 0


def test_reader_that_goes_early_is_no_error(household: Household) -> None:
    household.start("--n", "1")
    command = f"{sys.executable} -m hpcviews.cli logs one | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    household.run("stop", "one")


def test_launchers_are_shown_with_version_and_path(household: Household) -> None:
    reports = {(r["kind"], r["name"]): r for r in household.ask("launchers")}
    assert reports["starter", "fork"]["usable"]
    mpiexec = reports["starter", "mpiexec"]
    assert mpiexec["usable"] and mpiexec["version"] and os.access(mpiexec["path"], os.X_OK)
    assert "mpiexec" in household.run("launchers").stdout


def test_two_starts_of_one_name_at_the_same_moment_give_one_cluster(household: Household) -> None:
    starts = [household.begin("start", "--n", "1", "--name", "one") for _ in range(4)]
    codes = sorted(process.wait(60) for process in starts)
    assert codes == [0, 2, 2, 2]
    errors = [process.communicate()[1] for process in starts if process.returncode]
    assert all("hpcviews stop one" in text for text in errors), errors
    assert household.ask("status", "one")["state"] == "running"
    household.run("stop", "one")


def test_secrets_are_nowhere_but_in_their_files(household: Household) -> None:
    household.start("--n", "2", "--launcher", "mpiexec")
    directory = household.home / "clusters" / "one"
    secrets = [json.loads((directory / f"{role}.json").read_text())["secret_key"] for role in ("client", "engine")]
    for role in ("client", "engine"):
        assert (directory / f"{role}.json").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    seen = [household.run("logs", "one").stdout, household.run("status", "--json").stdout]
    seen += [(directory / "cluster.json").read_text(), *household.find_processes().values()]
    for pid in household.find_processes():
        seen.append(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace"))
    for secret in secrets:
        assert not any(secret in text for text in seen)
    household.run("stop", "one")


def test_cluster_can_be_reached_over_tcp_on_every_interface(household: Household) -> None:
    household.start("--n", "1", "--interface", "all")
    path = household.home / "clusters" / "one" / "client.json"
    access = json.loads(path.read_text())
    tcp = [endpoint for endpoint in access["endpoints"] if endpoint.startswith("tcp:")]
    addresses = [address for found in read_interfaces().values() for address in found]
    assert {urlsplit(endpoint).hostname for endpoint in tcp} == set(addresses)
    for endpoint in tcp:
        alone = household.work / "client.json"
        alone.touch(mode=0o600)
        alone.write_text(json.dumps({**access, "endpoints": [endpoint]}))
        with hpcviews.Client(access=alone) as rc:
            assert rc[:].apply_sync(lambda: 1) == [1]
    household.run("stop")


def test_home_may_have_a_strange_and_long_name(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = household.root / ("it's $HOME; a\tstrange\none " + "x" * 100)
    monkeypatch.setenv("HPCVIEWS_HOME", str(strange))
    for launcher in LAUNCHERS:
        done = household.run("run", "--n", "2", "--launcher", launcher, "-c", "import hpcviews; hpcviews.Client()")
        assert done.returncode == 0, done.stderr
    assert list((strange / "clusters").iterdir()) == []


def test_numpy_is_not_imported_by_the_command_line(household: Household) -> None:
    code = "import sys; from hpcviews.cli.app import main; main(['list']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for needless in ("numpy", "zmq", "rich", "mpi4py", "traitlets"):
        assert needless not in loaded.stdout.split(), f"`hpcviews list` imports {needless}"


def test_every_process_of_a_cluster_is_found_by_this_tests_own_means(household: Household) -> None:
    """Without this, the other tests could find nothing left because they find nothing at all."""
    household.start("--n", "2", "--launcher", "mpiexec")
    processes = household.find_processes()
    engines = [e["pid"] for e in household.ask("status")["engines"]]
    assert set(engines) <= set(find_pids(processes, "hpcviews.engine"))
    assert find_pids(processes, "hpcviews.cluster")
    household.run("stop")
