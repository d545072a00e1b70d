"""docs/interface.md has a row for every name of IPython.parallel's view module, and each row a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import hpcviews
from hpcviews.client import view as view_module

ROOT = Path(hpcviews.__file__).parent.parent
PAGE = ROOT / "docs" / "interface.md"

TRAITS = ["class_trait_names", "class_traits", "on_trait_change", "trait_metadata", "trait_names", "traits"]
EVERY_VIEW = [
    *["abort", "apply", "apply_async", "apply_sync", "block", "client", "get_result", "history", "imap", "map"],
    *["map_async", "map_sync", "outstanding", "parallel", "purge_results", "queue_status", "remote", "results"],
    *["set_flags", "shutdown", "spin", "temp_flags", "track", "wait"],
    *TRAITS,
]
DIRECT = [
    *["activate", "clear", "execute", "gather", "get", "importer", "kill", "pull", "push", "run", "scatter"],
    *["sync_imports", "targets", "update"],
]
BALANCED = ["after", "follow", "retries", "targets", "timeout"]
MODULE = ["save_ids", "spin_after", "sync_results"]

SECTIONS = {
    "Every view": (EVERY_VIEW, hpcviews.View),
    "Direct views": (DIRECT, hpcviews.DirectView),
    "Load-balanced views": (BALANCED, hpcviews.LoadBalancedView),
    "The module": (MODULE, view_module),
}


@cache
def read_rows(section: str) -> dict[str, tuple[str, list[str]]]:
    """Of a section's table: what each name does, and the tests that pin it."""
    text = PAGE.read_text().split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    rows = {}
    for name, what, tests in re.findall(r"^\| `(\w+)[^`]*` \| (.+?) \| (.+?) \|$", text, re.MULTILINE):
        rows[name] = (what, re.findall(r"`([\w/]+\.py::\w+)`", tests))
    return rows


@cache
def list_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, (names, _) in SECTIONS.items() for name in names])
def test_every_name_is_there_and_has_a_row_with_a_test(section: str, name: str) -> None:
    assert hasattr(SECTIONS[section][1], name), f"{SECTIONS[section][1]} has no {name}"
    rows = read_rows(section)
    assert name in rows, f"docs/interface.md, {section}: no row for {name}"
    what, tests = rows[name]
    assert len(what) > 10, f"{name}: what does it do?"
    assert tests, f"{name}: no test named as `file.py::test`"


def test_the_tests_of_the_page_exist() -> None:
    missing = []
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text()):
        file = ROOT / "tests" / path
        if not file.is_file() or name not in list_tests(file):
            missing.append(f"{path}::{name}")
    assert not missing, missing


def test_every_promise_has_a_test() -> None:
    text = PAGE.read_text().split("## Promises\n", 1)[1]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 18))
    assert not [number for number, _, tests in rows if not re.search(r"`[\w/]+\.py::\w+`", tests)]
