"""What cannot work is refused: one clear message with the next step, an exit code, and nothing left over."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from household import Household

import hpcviews
from hpcviews.errors import AccessRefused, ControllerUnreachable, NameInUse, NoCluster

NOBODY = 65534


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for text in texts:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- starting


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (["run", "--n", "2", "missing.py"], ["no script 'missing.py'"]),
        (["run", "--n", "0", "-c", "1"], ["at least 1, not 0"]),
        (["run", "--n", "many", "-c", "1"], ["'many' is not a valid integer"]),
        (["start", "--launcher", "lokal"], ["no launcher 'lokal'", "did you mean 'local'", "mpiexec"]),
        (["start", "--name", "no/slash"], ["letters, digits"]),
        (["start", "--n", "1", "--interface", "nope0"], ["no network interface or address 'nope0'", "lo (127.0.0.1"]),
        (["start", "--n", "1", "--launcher-arg", "x"], ["fork takes no arguments of its own"]),
    ],
)
def test_wrong_arguments_start_nothing(household: Household, args: list[str], texts: list[str]) -> None:
    assert_refused(household.run(*args), 2, *texts)


def test_name_in_use_is_refused_and_the_cluster_goes_on(household: Household) -> None:
    household.start("--n", "1")
    assert_refused(household.run("start", "--n", "1", "--name", "one"), 2, "hpcviews stop one")
    with pytest.raises(NameInUse):
        hpcviews.Cluster(n=1, name="one").start()
    assert household.ask("status", "one")["state"] == "running"
    household.run("stop")


def test_too_few_file_descriptors_are_noticed_before_anything_starts(household: Household) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard == resource.RLIM_INFINITY or hard > 200
    command = f"ulimit -n 200; exec {sys.executable} -m hpcviews.cli start --n 500"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert_refused(done, 4, "500 engines need", "the hard limit here is 200", "ask for at most")
    assert "set-0.log" not in {path.name for path in household.home.rglob("*.log")}


def test_engines_that_are_not_there_in_time_are_given_up(household: Household) -> None:
    done = household.run("start", "--n", "4", "--launcher", "mpiexec", "--timeout", "0.3")
    assert_refused(done, 4, "after 0.3 s", "--timeout", "hpcviews logs")


def test_machine_without_mpi_is_told_what_to_install(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = household.root / "bare"
    venv.create(bare, symlinks=True)
    packages = next((bare / "lib").glob("python*/site-packages"))
    # Everything that is installed here, but no mpiexec beside the interpreter.
    here = "\n".join(dict.fromkeys([*sys.path[1:], sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
    (packages / "here.pth").write_text(here)
    editable = [path for path in Path(sysconfig.get_path("purelib")).glob("*.pth") if "hpcviews" in path.name]
    for path in editable:
        shutil.copy(path, packages)
    monkeypatch.setenv("PATH", str(household.temporary))
    command = [str(bare / "bin" / "python"), "-m", "hpcviews.cli"]
    start = [*command, "start", "--n", "2", "--launcher", "mpiexec"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=60, check=False)
    assert_refused(done, 4, "'mpiexec'", 'pip install "hpcviews[', "hpcviews launchers")
    listed = subprocess.run([*command, "launchers"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert 'pip install "hpcviews[' in listed


# ---------------------------------------------------------------- the home directory


def test_home_that_others_can_read_is_refused(household: Household) -> None:
    household.home.mkdir(mode=0o755)
    assert_refused(household.run("start", "--n", "1"), 6, f"chmod 700 {household.home}")


def test_home_that_cannot_be_written_is_refused(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCVIEWS_HOME", "/proc/self/home")
    assert_refused(household.run("start", "--n", "1"), 4, "cannot write /proc/self/home", "set HPCVIEWS_HOME")


def test_full_disk_is_refused(household: Household) -> None:
    """A file size limit of 0 makes every write fail, as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "from hpcviews.cli.app import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "sys.exit(main(['start', '--n', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert_refused(done, 4, "File too large", "set HPCVIEWS_HOME to a directory")


# ---------------------------------------------------------------- connecting


def test_file_of_an_ended_cluster_is_refused(household: Household) -> None:
    household.start("--n", "1")
    directory = household.home / "clusters" / "one"
    copy = household.work / "client.json"
    shutil.copy2(directory / "client.json", copy)
    household.run("stop")
    with pytest.raises(NoCluster, match="hpcviews list"):
        hpcviews.Client(access=directory / "client.json")
    with pytest.raises(ControllerUnreachable) as refused:
        hpcviews.Client(access=copy, timeout=1)
    assert "its socket is gone" in str(refused.value)
    assert "connection refused" in str(refused.value)


def test_file_of_an_earlier_cluster_at_the_same_address_is_refused(household: Household) -> None:
    household.start("--n", "1")
    directory = household.home / "clusters" / "one"
    access = json.loads((directory / "client.json").read_text())
    stale = household.work / "client.json"
    stale.touch(mode=0o600)
    stale.write_text(json.dumps({**access, "generation": "earlier"}))
    with pytest.raises(ControllerUnreachable, match="of an earlier one"):
        hpcviews.Client(access=stale, timeout=1)
    household.run("stop")


def test_file_of_another_cluster_opens_only_that(household: Household) -> None:
    """Keys of one cluster at the address of another, as after a port was given away again."""
    household.start("--n", "1", name="one")
    household.start("--n", "1", name="two")
    first, second = (
        json.loads((household.home / "clusters" / name / "client.json").read_text()) for name in ("one", "two")
    )
    mixed = household.work / "client.json"
    mixed.touch(mode=0o600)
    tcp = [endpoint for endpoint in second["endpoints"] if endpoint.startswith("tcp:")]
    mixed.write_text(json.dumps({**first, "endpoints": tcp, "server_key": second["server_key"]}))
    with pytest.raises(AccessRefused, match="refuses the key"):
        hpcviews.Client(access=mixed, timeout=3)
    household.run("stop", "--all")


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"role": "client"}', "\0" * 100])
def test_damaged_file_is_refused(household: Household, content: str) -> None:
    path = household.work / "client.json"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(AccessRefused, match="not a connection file of hpcviews"):
        hpcviews.Client(access=path)


def test_engines_file_is_no_clients_file(household: Household) -> None:
    household.start("--n", "1")
    with pytest.raises(AccessRefused, match="role 'engine'"):
        hpcviews.Client(access=household.home / "clusters" / "one" / "engine.json")
    household.run("stop")


def test_file_that_others_can_read_is_refused(household: Household) -> None:
    household.start("--n", "1")
    path = household.home / "clusters" / "one" / "client.json"
    path.chmod(0o644)
    done = household.run("status", "one")
    assert (done.returncode, f"chmod 600 {path}" in done.stderr) == (6, True)
    with pytest.raises(AccessRefused, match=f"chmod 600 {path}"):
        hpcviews.Client("one")
    household.run("stop")


def run_as_nobody(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Python as another user. What it needs of hpcviews is imported before, where the checkout may be private."""
    prologue = (
        "import os, sys, hpcviews, hpcviews.client.client, hpcviews.records, hpcviews.cli.app, hpcviews.cli.status\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prologue + code, *args], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_users_cluster_is_refused(household: Household) -> None:
    household.start("--n", "1")
    code = (
        "os.environ['HPCVIEWS_HOME'] = sys.argv[2]\n"
        "try:\n    hpcviews.Client(access=sys.argv[1])\n"
        "except hpcviews.AccessRefused as error:\n    print(error)\n"
    )
    own = household.root / "nobodys"
    own.mkdir(mode=0o700)
    os.chown(own, NOBODY, NOBODY)
    household.root.chmod(0o755)
    private = household.home / "clusters" / "one" / "client.json"
    assert "may not be read" in run_as_nobody(code, str(private), str(own)).stdout
    # A copy that somebody made readable is somebody else's all the same.
    copy = household.root / "client.json"
    shutil.copy(private, copy)
    copy.chmod(0o644)
    assert "belongs to user root" in run_as_nobody(code, str(copy), str(own)).stdout
    household.run("stop")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_users_home_is_refused(household: Household) -> None:
    household.home.mkdir(mode=0o700)
    household.root.chmod(0o755)
    done = run_as_nobody("sys.exit(hpcviews.cli.app.main(['list']))")
    assert done.returncode == 6
    assert "belongs to another user" in done.stderr


def test_other_version_of_hpcviews_is_refused_and_both_are_named(household: Household) -> None:
    household.start("--n", "1")
    code = (
        "import hpcviews\n"
        "hpcviews.__version__ = '9.9'\n"
        "try:\n    hpcviews.Client('one')\n"
        "except hpcviews.VersionMismatch as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "this client has hpcviews 9.9" in done.stdout
    assert f"has {hpcviews.__version__}" in done.stdout
    household.run("stop")
