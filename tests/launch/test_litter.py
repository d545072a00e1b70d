"""What is removed after an engine set, and what is not: names under /dev/shm do not say whose they are."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcviews.cluster import litter as module
from hpcviews.cluster.litter import Litter
from hpcviews.cluster.spec import TemporaryFiles

HOLD = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/hpcviews_test_litter_{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that map a file; `hold` adds one."""
    held: list[subprocess.Popen[str]] = []
    yield held
    for process in held:
        process.communicate("")


def hold(holder: list[subprocess.Popen[str]], path: Path, python: str = sys.executable) -> int:
    command = [python, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder.append(process)
    assert process.stdout is not None and process.stdout.readline() == "mapped\n"
    return process.pid


def make(path: Path, age_s: float = 0.0) -> None:
    path.write_bytes(bytes(4096))
    when = time.time() - age_s
    os.utime(path, (when, when))


def litter(path: Path, started: float | None = None) -> Litter:
    return Litter([f"{path.name}*"], [], time.time() if started is None else started)


def test_segment_that_was_seen_mapped_is_removed_however_late_it_was_made(
    segment: Path, holder: list[subprocess.Popen[str]]
) -> None:
    swept = litter(segment, started=time.time() - 3600)
    make(segment)
    swept.note([hold(holder, segment)])
    holder.pop().communicate("")
    assert swept.sweep() == [segment] and not segment.exists()


def test_segment_that_nobody_maps_is_removed_if_it_was_made_at_our_start(segment: Path) -> None:
    swept = litter(segment)
    make(segment)
    assert swept.sweep() == [segment]


def test_segment_of_another_job_that_runs_is_left_alone(segment: Path, holder: list[subprocess.Popen[str]]) -> None:
    swept = litter(segment)
    make(segment)
    hold(holder, segment)
    assert swept.sweep() == [] and segment.exists()


@pytest.mark.parametrize("age_s", [3.0, -module.SHARED_MEMORY_WITHIN_S - 5])
def test_segment_made_at_another_time_is_left_alone(segment: Path, age_s: float) -> None:
    swept = litter(segment)
    make(segment, age_s)
    assert swept.sweep() == [] and segment.exists()


def test_segment_that_was_there_before_is_left_alone(segment: Path) -> None:
    make(segment)
    assert litter(segment).sweep() == [] and segment.exists()


def test_mapped_memory_of_other_names_is_left_alone(segment: Path) -> None:
    make(segment)
    with segment.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        swept = Litter(["mpich_shm_*"], [], time.time())
        swept.note([os.getpid()])
    assert swept.sweep() == [] and segment.exists()


def files_of(directory: Path, made_by: str = "no such program") -> list[TemporaryFiles]:
    return [TemporaryFiles(str(directory / "hydra_*"), made_by)]


def test_temporary_file_of_our_start_is_removed_and_others_are_not(tmp_path: Path) -> None:
    make(tmp_path / "hydra_earlier")
    swept = Litter([], files_of(tmp_path), time.time())
    make(tmp_path / "hydra_ours")
    make(tmp_path / "hydra_later", age_s=-module.TEMPORARY_WITHIN_S - 5)
    make(tmp_path / "else")
    assert swept.sweep() == [tmp_path / "hydra_ours"]
    assert {p.name for p in tmp_path.iterdir()} == {"hydra_earlier", "hydra_later", "else"}


def test_temporary_file_that_a_living_program_may_have_made_is_left_alone(
    tmp_path: Path, segment: Path, holder: list[subprocess.Popen[str]]
) -> None:
    make(segment)
    program = tmp_path / "proxy_for_test"  # a name of its own: other Pythons live here too
    program.symlink_to(Path(sys.executable).resolve())
    swept = Litter([], files_of(tmp_path, program.name), time.time())
    hold(holder, segment, str(program))
    make(tmp_path / "hydra_theirs")
    assert swept.sweep() == []
    holder.pop().communicate("")
    assert swept.sweep() == [tmp_path / "hydra_theirs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_file_of_another_user_is_left_alone(tmp_path: Path) -> None:
    swept = Litter([], files_of(tmp_path), time.time())
    make(tmp_path / "hydra_theirs")
    os.chown(tmp_path / "hydra_theirs", 65534, 65534)
    assert swept.sweep() == []
