"""The job scripts in slurm/, submitted as they are."""

from __future__ import annotations

import pytest
from site_of_test import ROOT, Site

TELL = """
import os, sys, hpcviews
rc = hpcviews.Client()
info = [e.info for e in rc.status().engines]
print(os.environ.get("SLURM_ARRAY_TASK_ID"), sys.argv[1:], [(e.host, e.world_size) for e in info])
"""


@pytest.mark.parametrize(("script", "world"), [("hpcviews", None), ("hpcviews-mpi", 4)])
def test_job_script_runs_a_script_with_engines_on_all_nodes(site: Site, script: str, world: int | None) -> None:
    site.write_script("tell.py", TELL)
    job = site.submit(str(ROOT / "slurm" / f"{script}.sbatch"), "tell.py", "a b")
    assert site.wait_for_job(job) == "COMPLETED"
    hosts = [("node1", world)] * 2 + [("node2", world)] * 2
    assert (site.work / f"{script}-{job}.out").read_text() == f"None ['a b'] {hosts}\n"


def test_array_runs_a_script_once_per_index(site: Site) -> None:
    site.write_script("tell.py", TELL)
    job = site.submit(str(ROOT / "slurm" / "hpcviews-array.sbatch"), "tell.py")
    for index in range(4):
        assert site.wait_for_job(f"{job}_{index}") == "COMPLETED"
        text = (site.work / f"hpcviews-array-{job}_{index}.out").read_text()
        assert text.startswith(f"{index} [] [('node"), text


def test_job_script_without_a_script_says_what_it_wants(site: Site) -> None:
    job = site.submit(str(ROOT / "slurm" / "hpcviews.sbatch"))
    assert site.wait_for_job(job) == "FAILED"
    assert "give the Python script to run" in (site.work / f"hpcviews-{job}.out").read_text()
