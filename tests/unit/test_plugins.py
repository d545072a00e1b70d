"""Launchers by name, and plug-ins of other distributions: good, broken, and in the way."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from hpcviews.cluster import plugins
from hpcviews.cluster.spec import Detection, Host, ProbeOutput
from hpcviews.errors import LauncherUnavailable, UnknownLauncher, UsageError

HOST = Host(
    cores=2,
    is_root=False,
    python="/opt/python",
    environment={},
    which=lambda name: None,
    run=lambda argv: ProbeOutput(None, "", ""),
)

MODULE = """
from hpcviews.cluster.spec import Allocation, Command, Detection

class Good:
    name = "good"
    reaches_nodes = True
    def detect(self, host): return Detection(usable=True, version="Good 1.0")
    def command(self, order, detection, host): return Command(("good",))
    def find_cause(self, log): return None

class Failing(Good):
    name = "failing"
    def detect(self, host): raise OSError("no such device")

class Incomplete:
    name = "incomplete"
    def detect(self, host): return Detection(usable=True)

class Queue:
    name = "queue"
    default_starter = "good"
    def detect(self, host): return Detection(usable=False, why="no qsub on PATH")
    def allocation(self, host): return None

class Fork(Good):
    name = "fork"
"""

ENTRY_POINTS = """
[hpcviews.schedulers]
queue = site_launchers:Queue
[hpcviews.starters]
good = site_launchers:Good
failing = site_launchers:Failing
incomplete = site_launchers:Incomplete
missing = site_launchers_that_are_not_there:X
renamed = site_launchers:Good
fork = site_launchers:Fork
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with plug-ins, most of them bad."""
    (tmp_path / "site_launchers.py").write_text(MODULE)
    metadata = tmp_path / "site_launchers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: site-launchers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_built_in_table_is_what_the_distribution_registers() -> None:
    for group, table in plugins.BUILT_IN.items():
        ours = {e.name: e.value for e in entry_points(group=group) if e.value.startswith("hpcviews_launchers.")}
        assert ours == dict(table)


@pytest.mark.parametrize(
    ("name", "scheduler", "starter"),
    [
        ("local", "local", "fork"),
        ("fork", "local", "fork"),
        ("mpiexec", "local", "mpiexec"),
        ("local+mpiexec", "local", "mpiexec"),
        ("local+fork", "local", "fork"),
    ],
)
def test_names_of_launchers(name: str, scheduler: str, starter: str) -> None:
    launcher = plugins.get_launcher(name)
    assert (launcher.name, launcher.scheduler.name, launcher.starter.name) == (name, scheduler, starter)


IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(
    ("name", "environment", "meant"),
    [
        (None, {}, "local"),
        (None, IN_A_JOB, "slurm"),
        ("mpiexec", {}, "mpiexec"),
        ("mpiexec", IN_A_JOB, "slurm+mpiexec"),
        ("local+mpiexec", IN_A_JOB, "local+mpiexec"),
        ("local", IN_A_JOB, "local"),
        ("fork", IN_A_JOB, "fork"),
    ],
)
def test_launchers_mean_the_job_that_they_are_named_in(
    name: str | None, environment: dict[str, str], meant: str
) -> None:
    assert plugins.choose_launcher(name, replace(HOST, environment=environment)).name == meant


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mpiexek", "did you mean 'mpiexec'?"),
        ("xyz", "there are: fork, local, mpiexec, slurm, srun"),
        ("local+frok", "there is no starter 'frok'; did you mean 'fork'?"),
        ("locale+fork", "there is no scheduler 'locale'; did you mean 'local'?"),
        ("+", "there is no scheduler ''"),
        ("", "no launcher ''"),
    ],
)
def test_unknown_launcher_names_the_valid_ones(name: str, says: str) -> None:
    with pytest.raises(UnknownLauncher) as caught:
        plugins.get_launcher(name)
    assert says in str(caught.value) and "mpiexec" in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.usefixtures("site")
def test_plugin_of_another_distribution_is_found_by_name() -> None:
    assert plugins.get_launcher("good").starter.name == "good"
    assert plugins.get_launcher("queue+fork").scheduler.name == "queue"
    queue = plugins.get_launcher("queue")
    assert (queue.scheduler.name, queue.starter.name) == ("queue", "good")


@pytest.mark.usefixtures("site")
def test_broken_plugins_are_logged_reported_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hpcviews.cluster.plugins"):
        found = plugins.load_plugins()
    assert set(found.starters) == {"fork", "mpiexec", "srun", "good", "failing"}
    broken = {b.name: b.why for b in found.broken}
    assert broken.keys() == {"incomplete", "missing", "renamed", "fork"}
    assert "it lacks command, find_cause, reaches_nodes" in broken["incomplete"]
    assert "No module named 'site_launchers_that_are_not_there'" in broken["missing"]
    assert "calls itself 'good', its entry point 'renamed'" in broken["renamed"]
    assert "the name is taken by hpcviews" in broken["fork"]
    assert len(caplog.records) == 4


@pytest.mark.usefixtures("site")
def test_name_of_a_broken_plugin_says_what_is_wrong_with_it() -> None:
    with pytest.raises(UnknownLauncher, match="starter missing of site-launchers is broken: ModuleNotFoundError"):
        plugins.get_launcher("missing")


@pytest.mark.usefixtures("site")
def test_built_in_names_cannot_be_taken() -> None:
    assert type(plugins.get_launcher("fork").starter).__module__ == "hpcviews_launchers.fork"


@pytest.mark.usefixtures("site")
def test_report_of_all_plugins_tells_which_work_and_why_others_do_not() -> None:
    reports = {(r.kind, r.name, r.origin): r.detection for r in plugins.detect_all(HOST)}
    assert reports["starter", "good", "site-launchers"] == Detection(usable=True, version="Good 1.0")
    assert reports["scheduler", "queue", "site-launchers"].why == "no qsub on PATH"
    assert reports["starter", "failing", "site-launchers"].why == "its detection failed: OSError: no such device"
    assert reports["starter", "incomplete", "site-launchers"].why.startswith("cannot be loaded: TypeError")
    assert reports["starter", "fork", "hpcviews"].usable and reports["scheduler", "local", "hpcviews"].usable
    assert "SLURM is not installed here" in reports["scheduler", "slurm", "hpcviews"].why
    assert 'pip install "hpcviews[mpich]"' in reports["starter", "mpiexec", "hpcviews"].why


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("queue", "launcher 'queue': its scheduler queue cannot be used here: no qsub on PATH"),
        ("mpiexec", "launcher 'mpiexec': its starter mpiexec cannot be used here: no mpiexec beside /opt/python"),
    ],
)
def test_launcher_that_cannot_be_used_here_says_why(name: str, says: str) -> None:
    with pytest.raises(LauncherUnavailable) as caught:
        plugins.detect(plugins.get_launcher(name), HOST)
    assert says in str(caught.value) and "hpcviews launchers" in str(caught.value)
