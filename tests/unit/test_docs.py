"""The pages say what the code does: diagrams are generated, names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hpcviews
from hpcviews.cli import exit_codes
from hpcviews.controller.state import SET_MOVES, WORK_MOVES, render_moves

ROOT = Path(hpcviews.__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_diagrams_are_generated_from_the_tables() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert render_moves(SET_MOVES) in text and render_moves(WORK_MOVES) in text
    assert len(text.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = set(
        re.findall(
            r"`((?:hpcviews|tests|examples|docs|launchers|controller|engine|client|cluster|wire)/[\w./]+\.\w+)`",
            page.read_text(),
        )
    )
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "hpcviews" / name).exists()]
    assert not missing, f"{page.name} names files that are not there: {missing}"


def test_exit_codes_are_the_ones_of_the_code() -> None:
    text = (ROOT / "docs" / "command_line.md").read_text()
    for code, meaning in exit_codes.MEANINGS.items():
        assert f"| {code} | {meaning} |" in text
