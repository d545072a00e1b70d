from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "scenario")]

from site_of_test import ROOT, Site  # noqa: E402 - beside this file

HOW = "needs root and SLURM: sudo sh -c 'apt-get install -y slurm-wlm munge iproute2; make test-site'"
BED = [sys.executable, str(ROOT / "slurm" / "testbed")]


@pytest.fixture(scope="session")
def bed() -> Iterator[list[str]]:
    """A SLURM of three nodes on this machine; the command that acts on it."""
    # Not below /tmp, which the nodes do not share; and short, because of the sockets in it.
    with tempfile.TemporaryDirectory(prefix="hvbed", dir="/var/tmp") as directory:
        command = [*BED, "--dir", directory]
        started = subprocess.run([*command, "up", "--nodes", "3"], capture_output=True, text=True, check=False)
        try:
            if started.returncode != 0:
                why = started.stderr.strip()
                if os.environ.get("CI") == "true" or "needs" not in why:
                    pytest.fail(f"{why}\n{HOW}")
                pytest.skip(HOW)
            yield command
        finally:
            subprocess.run([*command, "down"], check=False)


@pytest.fixture
def site(bed: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A user's account on that SLURM; at its end nothing may be left on any node."""
    made = Site(bed, monkeypatch)
    try:
        yield made
        made.assert_nothing_left()
    finally:
        made.close()
