"""Import statements read from bytecode, as the Python that runs this compiles them."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hpcviews.client.import_statements import ImportStatement, read_statement


def read_all(code: str, namespace: dict[str, Any], run: Callable[..., Any] | None = None) -> list[ImportStatement]:
    """What the imports of `code` are, those that its own frame executes."""
    seen: list[ImportStatement] = []
    filename = "<the code>"

    def look(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_filename == filename:
            statement = read_statement(frame.f_code, frame.f_lasti, name, fromlist, level, globals)
            if statement is not None:
                seen.append(statement)
        return original(name, globals, locals, fromlist, level)

    original = builtins.__import__
    builtins.__import__ = look
    try:
        exec(compile(code, filename, "exec"), namespace)
    finally:
        builtins.__import__ = original
    return seen


STATEMENTS = [
    "import os",
    "import os as system",
    "import os.path",
    "import xml.etree.ElementTree",
    "import os.path as p",
    "import xml.etree.ElementTree as tree",
    "from os import path",
    "from os import path as p",
    "from os import path, sep as separator, getpid",
    "from xml.etree.ElementTree import Element as E, SubElement",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statement_at_module_level_is_read_back(statement: str) -> None:
    (read,) = read_all(statement, {})
    assert read.render() == statement


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("use", ["x = 1", "return {name}", "return lambda: {name}", "print({name}, {name})"])
def test_statement_in_a_function_is_read_back(statement: str, use: str) -> None:
    # What follows decides which instructions bind a local name, from Python 3.13 on.
    bound = read_all(statement, {})[0].bound[-1]
    code = f"def f(print=lambda *a: None):\n    {statement}\n    {use.format(name=bound)}\nf()"
    (read,) = read_all(code, {})
    assert read.render() == statement


def test_bound_names_are_known() -> None:
    assert [read_all(statement, {})[0].bound for statement in STATEMENTS] == [
        ["os"], ["system"], ["os"], ["xml"], ["p"], ["tree"], ["path"], ["p"], ["path", "separator", "getpid"],
        ["E", "SubElement"],
    ]  # fmt: skip


def test_star_and_global_and_several_on_a_line_are_read() -> None:
    assert [s.render() for s in read_all("from os import *; import os as a, json as b", {})] == [
        "from os import *", "import os as a", "import json as b",
    ]  # fmt: skip
    code = "def f():\n    global g\n    import os as g\n    import json as c\n    return lambda: c\nf()"
    assert [s.render() for s in read_all(code, {})] == ["import os as g", "import json as c"]
    many = "\n".join(f"v{i} = {i}" for i in range(300))  # so many names that instructions need an extended argument
    assert [s.render() for s in read_all(f"{many}\nimport os.path as late", {})] == ["import os.path as late"]


def test_relative_import_is_made_absolute() -> None:
    inside = {"__name__": "xml.etree.something", "__package__": "xml.etree"}
    assert [s.render() for s in read_all("from . import ElementTree as T\nfrom ..dom import minidom", inside)] == [
        "from xml.etree import ElementTree as T", "from xml.dom import minidom",
    ]  # fmt: skip
    statement = ImportStatement("a.b", (("c", "d"),), None)
    assert statement.describe() == "d from a.b"


def test_call_of_import_is_no_statement() -> None:
    assert read_all("m = __import__('os')", {}) == []
