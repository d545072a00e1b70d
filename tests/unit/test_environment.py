"""What is taken from the environment, and what is put into or kept out of that of children."""

from __future__ import annotations

import pytest

from hpcviews import environment


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_huge_pages_are_asked_for_unless_the_user_has_said_otherwise(before: dict[str, str], after: str) -> None:
    assert environment.advise_huge_pages({"A": "1", **before}) == {"A": "1", "GLIBC_TUNABLES": after}


def test_variables_of_an_outer_job_are_scrubbed_and_others_kept() -> None:
    variables = {"SLURM_CPU_BIND": "x", "PMI_RANK": "3", "PMIX_RANK": "3", "OMPI_COMM_WORLD_RANK": "3", "HOME": "/h"}
    prefixes = environment.SCHEDULER_PREFIXES + environment.MPI_PREFIXES
    assert environment.scrub(variables, prefixes) == {"HOME": "/h"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"SLURM_PROCID": "5"}, None),
        ({"PMIX_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "SLURM_PROCID": "0"}, (2, 1)),
        ({"PMI_RANK": "7", "MPI_LOCALRANKID": "3"}, (7, 3)),
    ],
)
def test_rank_is_the_starters_and_never_that_of_its_daemon(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: tuple[int, int] | None
) -> None:
    for name in ("PMIX_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.find_mpi_rank() == found


def test_home_is_the_named_one_else_the_xdg_one_else_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("HPCVIEWS_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert str(environment.get_home()) == "/h/.local/state/hpcviews"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert str(environment.get_home()) == "/x/hpcviews"
    monkeypatch.setenv("HPCVIEWS_HOME", "~/mine")
    assert str(environment.get_home()) == "/h/mine"
