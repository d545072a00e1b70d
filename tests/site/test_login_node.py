"""From the login node of a real SLURM: a job is submitted, watched, used and ended."""

from __future__ import annotations

import os
import re
import signal

import pytest
from household import Telling, find_pids
from site_of_test import Site

from hpcviews.testing.wait import wait_until

SLURM = ("start", "--launcher", "slurm", "--time", "5m")


def start(site: Site, *args: str, name: str = "one") -> None:
    done = site.run(*SLURM, "--name", name, *args)
    assert done.returncode == 0, done.stderr


def get_job(site: Site, name: str = "one") -> str:
    (job,) = [c["job"]["id"] for c in site.ask("list") if c["name"] == name]
    assert isinstance(job, str)
    return job


def wait_for_queued(site: Site) -> str:
    """The job of the cluster `one`, once it is in the queue."""

    def look() -> str:
        jobs = [c["job"]["id"] for c in site.ask("list") if c["job"]]
        return jobs[0] if jobs else ""

    return wait_until(look, 30, "the job to be queued")


# ---------------------------------------------------------------- use


def test_cluster_is_started_used_and_stopped_from_the_login_node(site: Site) -> None:
    done = site.run(*SLURM, "--name", "one", "--n", "4", "--nodes", "2", "--per-node", "2")
    assert done.returncode == 0, done.stderr
    assert "cluster one is ready: 4 engines by slurm" in done.stdout
    assert re.search(r"job \d+ is submitted", done.stderr)
    code = "import hpcviews, socket; print(hpcviews.Client('one')[:].apply_sync(socket.gethostname))"
    assert site.python(code) == "['node1', 'node1', 'node2', 'node2']\n"
    status = site.ask("status")
    assert status["state"] == "running" and status["job"]["state"] == "running"
    assert [e["host"] for e in status["engines"]] == ["node1", "node1", "node2", "node2"]
    assert site.ask("list")[0]["state"] == "running"
    assert "serving at" in site.run("logs", "one").stdout
    stopped = site.run("stop", "one")
    assert "one: stopped, and its job" in stopped.stdout, stopped.stderr


def test_cluster_is_looked_after_from_any_node(site: Site) -> None:
    start(site, "--n", "2")
    assert site.ask("status", host="node3")["state"] == "running"
    assert "stopped" in site.run("stop", host="node3").stdout


@pytest.mark.parametrize("arguments", [("--launcher", "slurm+mpiexec"), ("--launcher-arg=--mpi=pmi2",)])
def test_engines_of_a_submitted_job_are_one_world(site: Site, arguments: tuple[str, ...]) -> None:
    start(site, "--nodes", "2", "--per-node", "2", *arguments)
    assert [(e["rank"], e["world_size"]) for e in site.ask("status")["engines"]] == [(i, 4) for i in range(4)]
    site.run("stop")


def test_script_on_the_login_node_runs_with_engines_in_a_job(site: Site) -> None:
    code = "import hpcviews, socket; print(socket.gethostname(), hpcviews.Client()[:].apply_sync(socket.gethostname))"
    done = site.run("run", "--launcher", "slurm", "--n", "2", "--time", "2m", "-c", code)
    assert done.stdout == "head ['node1', 'node1']\n", done.stderr
    assert site.list_jobs() == []


def test_names_and_directories_may_have_any_letters(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in ("a b", "it's; $HOME `x`", "new\nline", 'qu"ote\\'):
        (site.work / directory).mkdir()
        monkeypatch.chdir(site.work / directory)
        start(site, "--n", "1", "--job-name", 'a "b" %j; $x')
        code = (
            "import hpcviews, os; print([os.path.samefile(d, '.') for d in hpcviews.Client()[:].apply_sync(os.getcwd)])"
        )
        assert site.python(code) == "[True]\n"
        assert site.run("stop").returncode == 0


def test_records_may_be_in_a_directory_of_any_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.home = site.root / 'my "home" 100%j; $x'
    monkeypatch.setenv("HPCVIEWS_HOME", str(site.home))
    start(site, "--n", "1")
    assert "serving at" in site.run("logs", "one").stdout
    assert site.run("stop").returncode == 0


# ---------------------------------------------------------------- before it runs


def test_waiting_job_is_told_of_and_interrupt_cancels_it(site: Site) -> None:
    process = site.begin(*SLURM, "--name", "one", "--n", "1", "--directive=--hold")
    job = wait_for_queued(site)
    wait_until(lambda: "JobHeldUser" in str(site.ask("status")["job"]), 30, "the reason")
    status = site.run("status")
    assert status.returncode == 0 and f"job         {job} of slurm: PENDING (JobHeldUser)" in status.stdout
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "PENDING (JobHeldUser): it may never start" in said
    assert site.list_jobs() == [] and site.find_clusters() == []


def test_waiting_job_is_stopped_from_another_shell(site: Site) -> None:
    process = site.begin(*SLURM, "--name", "one", "--n", "1", "--directive=--hold")
    job = wait_for_queued(site)
    assert f"cancelled job {job}" in site.run("stop", host="node2").stdout
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4 and "CANCELLED" in said


def test_job_goes_on_waiting_when_the_shell_dies(site: Site) -> None:
    process = site.begin(*SLURM, "--name", "one", "--n", "1", "--directive=--hold")
    job = wait_for_queued(site)
    for pid in find_pids(site.find_processes(), "hpcviews.cli start"):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert site.ask("status")["state"] == "queued"
    site.on("head", "scontrol", "release", job)

    def look() -> bool | Telling:
        status = site.ask("status")
        return len(status["engines"]) == 1 or Telling(status)

    wait_until(look, 60, "the engine")
    assert "stopped" in site.run("stop").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--queue", "nope"), "choose one with --queue"),
        (("--constraint", "nope"), "lists the features"),
        (("--mem", "900G"), "shows what nodes have"),
        (("--dependency", "nonsense:1"), "afterok:JOBID"),
        (("--directive=--nonsense=1",), "unrecognized option"),
    ],
)
def test_refused_job_says_why_and_leaves_nothing(site: Site, arguments: tuple[str, ...], says: str) -> None:
    done = site.run(*SLURM, "--n", "1", *arguments)
    assert done.returncode == 4 and "sbatch does not take the job" in done.stderr and says in done.stderr
    assert site.find_clusters() == []


def test_job_that_is_only_looked_at_is_not_submitted(site: Site) -> None:
    assert "#SBATCH --ntasks=3\n" in site.run(*SLURM, "--n", "3", "--dry-run").stdout
    assert "to start at" in site.run(*SLURM, "--n", "3", "--validate").stdout
    refused = site.run(*SLURM, "--n", "3", "--queue", "nope", "--validate")
    assert refused.returncode == 4 and "choose one with --queue" in refused.stderr
    assert site.list_jobs() == [] and site.find_clusters() == []


# ---------------------------------------------------------------- ends


def test_job_that_dies_at_once_is_explained_with_the_end_of_its_log(site: Site) -> None:
    done = site.run(*SLURM, "--n", "1", "--python", "/nonexistent/python")
    assert done.returncode == 4
    assert "ended before its engines were ready: FAILED" in done.stderr
    assert "/nonexistent/python does not exist on that machine" in done.stderr


def test_engines_that_cannot_start_are_explained(site: Site) -> None:
    done = site.run(*SLURM, "--n", "1", "--launcher-arg=--mpi=nosuch")
    assert done.returncode == 4 and "srun --mpi=list" in done.stderr


def test_killed_controller_is_a_dead_cluster_until_it_is_cleared_away(site: Site) -> None:
    start(site, "--n", "2", "--nodes", "2")
    (pid,) = find_pids(site.find_processes(), "-m hpcviews.cluster --job")
    os.kill(pid, signal.SIGKILL)
    site.wait_for_job(get_job(site))
    status = site.run("status")
    assert status.returncode == 3 and "cluster     one: dead" in status.stdout and "its job is over" in status.stderr
    assert site.ask("list")[0]["state"] == "dead"
    assert "had ended; cleared away" in site.run("stop").stdout


def test_cancelled_job_ends_in_order(site: Site) -> None:
    start(site, "--n", "2", "--nodes", "2")
    site.on("head", "scancel", get_job(site))
    wait_until(lambda: not site.find_clusters() or Telling(site.find_clusters()), 30, "the record's end")
    assert "SIGTERM came" in site.run("logs", "one").stdout


@pytest.mark.timeout(300)  # every command of SLURM's takes 10 to 20 s to give up
def test_silent_slurm_breaks_nothing(site: Site) -> None:
    start(site, "--n", "1")
    site.act("kill", "head")
    status = site.run("status")
    assert status.returncode == 0 and "slurm does not answer" in status.stdout and "idle" in status.stdout
    assert "stopped; slurm does not answer" in site.run("stop").stdout
    refused = site.run(*SLURM, "--n", "1")
    assert refused.returncode == 4 and "`scontrol ping` tells when SLURM is back" in refused.stderr
    site.act("start", "head")
    wait_until(lambda: site.on("head", "scontrol", "ping").returncode == 0, 30, "slurmctld")
