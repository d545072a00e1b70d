"""Every command and every snippet of the pages runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcviews

ROOT = Path(hpcviews.__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

# Commands that set up or test the checkout itself: .ci/run runs them.
RUN_BY_CI = ("make ", "pip install ", "bash .ci/run", "sudo make")


def iterate_blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            yield f"{page.stem}-{number}", block


def blocks(language: str) -> pytest.MarkDecorator:
    found = list(iterate_blocks(language))
    return pytest.mark.parametrize("block", [b for _, b in found], ids=[name for name, _ in found])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A new user's: an empty home, and the commands of this installation."""
    return {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }


def run(argv: list[str], environment: dict[str, str], expected: int = 0) -> str:
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == expected, f"{shlex.join(argv)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def find_expected(block: str) -> list[str]:
    """What the comments behind print() say that it prints: a list or a number at their end."""
    return re.findall(r"print\(.*#.*?(\[[^\]]*\]|\d[\d.]*)$", block, re.MULTILINE)


@blocks("python")
def test_python_snippet_runs_and_prints_what_it_says(block: str, environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(block)
    if "Cluster(" in block:
        out = run([sys.executable, str(script)], environment)
    else:
        out = run(["hpcviews", "run", "--n", "4", str(script)], environment)
    for text in find_expected(block):
        assert text in out, f"{text!r} is not in:\n{out}"


@blocks("bash")
def test_commands_run(block: str, environment: dict[str, str]) -> None:
    try:
        for line in block.splitlines():
            command, _, comment = line.partition("  #")
            if not command.strip() or command.startswith(RUN_BY_CI):
                continue
            expected = re.search(r"exit code (\d+)", comment)
            run(["bash", "-c", command], environment, int(expected[1]) if expected else 0)
    finally:
        run(["hpcviews", "stop", "--all"], environment)


def test_there_is_something_to_run() -> None:
    assert len(list(iterate_blocks("python"))) > 5 and len(list(iterate_blocks("bash"))) > 5
    assert any(find_expected(block) for _, block in iterate_blocks("python"))
