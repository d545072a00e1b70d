"""File descriptors for n engines, asked for before anything starts."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from hpcviews.cluster import limits
from hpcviews.errors import NotEnoughFiles

SCRIPT = """
import resource, sys
from hpcviews.cluster.limits import ensure_files
from hpcviews.errors import NotEnoughFiles
soft, hard, n = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    print(ensure_files(n), *resource.getrlimit(resource.RLIMIT_NOFILE))
except NotEnoughFiles as error:
    print(error)
"""


def ensure(soft: int, hard: int, n: int) -> str:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(n)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def test_soft_limit_is_raised_to_the_hard_one() -> None:
    assert ensure(256, 1024, 4) == "1024 1024 1024"


def test_too_low_a_hard_limit_names_the_numbers_and_the_fix() -> None:
    said = ensure(256, 1024, 1000)
    assert f"1000 engines need {limits.count_files_needed(1000)} open files" in said
    assert "the hard limit here is 1024" in said
    fitting = (1024 - limits.FILES_FIXED) // limits.FILES_PER_ENGINE
    assert f"at most {fitting} engines" in said and "limits.conf" in said


def test_most_engines_that_are_named_as_fitting_do_fit() -> None:
    fitting = (1024 - limits.FILES_FIXED) // limits.FILES_PER_ENGINE
    assert ensure(256, 1024, fitting) == "1024 1024 1024"
    assert "open files" in ensure(256, 1024, fitting + 1)


@pytest.mark.parametrize(("n", "expected"), [(4, limits.FILES_GENEROUS), (100_000, limits.count_files_needed(100_000))])
def test_huge_hard_limit_is_not_taken_whole(monkeypatch: pytest.MonkeyPatch, n: int, expected: int) -> None:
    # 2^30 as in many containers; setrlimit is not allowed to ordinary users, so it is only looked at.
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 2**30))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: asked.append(pair))
    assert limits.ensure_files(n) == expected
    assert asked == [(expected, 2**30)]


def test_limit_that_cannot_suffice_is_an_error_that_a_launch_can_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(NotEnoughFiles, match="at most 0 engines"):
        limits.ensure_files(1)
