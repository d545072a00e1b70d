"""The peers' Python environment: made once in the checkout (untracked), and anew when its packages change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("ipyparallel>=9.2,<10", "numpy>=1.24")

DIRECTORY = Path(__file__).resolve().parents[2] / ".venv-bench"


class NoEnvironment(Exception):
    """The peers' environment could not be made."""


def make_environment(directory: Path = DIRECTORY) -> Path:
    """The Python of the peers' environment.

    Raises:
        NoEnvironment: pip failed; the message has its last words.
    """
    python = directory / "bin" / "python"
    stamp = directory / "packages.txt"
    wanted = "\n".join((sys.version, *PACKAGES))
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making {directory} for the peers …", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(directory)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoEnvironment(
                f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-1500:]}\n"
                "Without peers: python -m tests.bench --peers process_pool, or --peers none"
            )
    stamp.write_text(wanted)
    return python
