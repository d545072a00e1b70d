"""The architecture, enforced: imports go one way, and each outside thing has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcviews

ROOT = Path(hpcviews.__file__).parent
LAUNCHERS = ROOT.parent / "launchers" / "hpcviews_launchers"

# Who may import whom: a layer may import itself and the layers named.
BASE = {"errors", "exits", "ids", "environment", "names", "prctl", "procfs", "__init__"}
MAY_IMPORT: dict[str, set[str]] = {
    "base": {"base"},
    "wire": {"base", "wire"},
    "records": {"base", "wire", "records"},
    "controller": {"base", "wire", "controller"},
    "engine": {"base", "wire", "engine"},
    "client": {"base", "wire", "records", "client"},
    "cluster": {"base", "wire", "records", "controller", "client", "cluster"},
    "cli": {"base", "wire", "records", "client", "cluster", "cli"},
    "notebook": {"base", "wire", "client", "notebook"},
    "bridges": {"base", "wire", "client", "bridges"},
    "testing": {"base", "wire", "records", "controller", "engine", "client", "cluster", "testing"},
    "launchers": {"base", "cluster", "launchers"},
}

# The only files that may touch these.
DOORS = {
    "mpi4py": {"engine/world.py"},
    "subprocess": {"cluster/processes.py"},
    "IPython": {"engine/ipython_shell.py", "notebook/arguments.py", "notebook/magics.py"},
    "sqlite3": {"controller/archive_file.py"},
    "joblib": {"bridges/joblib.py", "bridges/joblib_batch.py"},
}


def find_layer(dotted: str) -> str | None:
    parts = dotted.split(".")
    if parts[0] == "hpcviews_launchers":
        return "launchers"
    if parts[0] != "hpcviews":
        return None
    if len(parts) == 1 or parts[1] in BASE:
        return "base"
    return parts[1]


def iterate_files() -> Iterator[tuple[str, str, ast.Module]]:
    for root, prefix in ((ROOT, "hpcviews"), (LAUNCHERS, "hpcviews_launchers")):
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            dotted = ".".join((prefix, *relative.with_suffix("").parts))
            yield str(relative), dotted, ast.parse(path.read_text())


def iterate_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "absolute imports only"
            if node.module == "hpcviews":
                yield from (f"hpcviews.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            else:
                yield node.module


def test_imports_go_one_way() -> None:
    wrong = []
    for relative, dotted, tree in iterate_files():
        layer = find_layer(dotted)
        if relative == "__init__.py":
            continue  # lazy names for the user; checked by test_import_is_cheap
        assert layer in MAY_IMPORT, f"{relative}: a new layer? say in MAY_IMPORT whom it may import"
        for imported in iterate_imports(tree):
            target = find_layer(imported)
            if target is not None and target not in MAY_IMPORT[layer]:
                wrong.append(f"{dotted} imports {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", sorted(DOORS))
def test_outside_things_have_one_door(module: str) -> None:
    users = {
        relative
        for relative, _, tree in iterate_files()
        if any(i.split(".")[0] == module for i in iterate_imports(tree))
    }
    assert users == DOORS[module]


def test_only_one_file_reads_the_environment() -> None:
    users = set()
    for relative, _, tree in iterate_files():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                users.add(relative)
    assert users == {"environment.py"}


def list_imported(module: str) -> set[str]:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    return set(out.split())


def test_engine_starts_without_what_it_does_not_need() -> None:
    imported = list_imported("hpcviews.engine.app")
    for needless in ("numpy", "IPython", "click", "rich", "traitlets", "mpi4py", "asyncio", "hpcviews.client"):
        assert needless not in imported, f"starting an engine imports {needless}"


def test_import_is_cheap() -> None:
    imported = list_imported("hpcviews")
    for needless in ("numpy", "zmq", "traitlets", "click", "msgspec"):
        assert needless not in imported, f"`import hpcviews` imports {needless}"
