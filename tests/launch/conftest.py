from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rig import Rig

MPI_VENVS_VARIABLE = "HPCVIEWS_TEST_MPI_VENVS"
"""Virtual environments with one MPI each, separated by colons; `make test` makes them and sets it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mpi_python" in metafunc.fixturenames:
        venvs = [Path(part) for part in os.environ.get(MPI_VENVS_VARIABLE, "").split(":") if part]
        nothing = pytest.param(None, marks=pytest.mark.skip(f"{MPI_VENVS_VARIABLE} is not set; `make test` does"))
        values = [pytest.param(str(venv / "bin/python"), id=venv.name) for venv in venvs] or [nothing]
        metafunc.parametrize("mpi_python", values)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Starts one controller with one engine set, and sees to it that nothing of it is left."""
    rig = Rig(tmp_path)
    yield rig
    rig.close()
