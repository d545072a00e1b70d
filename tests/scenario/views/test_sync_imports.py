"""sync_imports: imports in a with-block happen on the engines too."""

from __future__ import annotations

import builtins
import threading
from contextlib import ExitStack

import pytest

from hpcviews import Client, CompositeError, RemoteError


def test_imports_happen_here_and_there(rc: Client, capsys: pytest.CaptureFixture[str]) -> None:
    view = rc[:]
    original = builtins.__import__
    with view.sync_imports():
        import colorsys
        import email.mime.text as mime
        import os.path
        from json import decoder
        from json import dumps as to_json
        from string import ascii_letters, digits
    assert builtins.__import__ is original
    assert colorsys and decoder and mime and os.path and to_json and ascii_letters and digits
    assert capsys.readouterr().out.splitlines() == [
        "importing colorsys on engine(s)",
        "importing email.mime.text as mime on engine(s)",
        "importing os.path on engine(s)",
        "importing decoder from json on engine(s)",
        "importing to_json from json on engine(s)",
        "importing ascii_letters,digits from string on engine(s)",
    ]
    assert (
        view["colorsys.__name__, mime.__name__, os.path.sep, decoder.__name__, to_json([1]), digits"]
        == [("colorsys", "email.mime.text", "/", "json.decoder", "[1]", "0123456789")] * 3
    )
    assert rc[0].pull("'email' in globals()", block=True) is False, "the name is the one after `as`"


def test_importer_is_the_same_without_parentheses(rc: Client, capsys: pytest.CaptureFixture[str]) -> None:
    with rc[0].importer:
        import calendar
    assert calendar and rc[0]["calendar.__name__"] == "calendar"
    assert "importing calendar on engine(s)" in capsys.readouterr().out
    with pytest.raises(RemoteError):
        _ = rc[1]["calendar"]


def test_failed_import_on_an_engine_is_raised_at_the_end(rc: Client, capsys: pytest.CaptureFixture[str]) -> None:
    rc[:].execute("import sys; sys.modules['chunk_of_nothing'] = None; sys.modules['colorsys'] = None", block=True)
    try:
        with pytest.raises(CompositeError, match="colorsys"), rc[:].sync_imports(quiet=True):
            import colorsys
            import string as text
        with pytest.raises(RemoteError), rc[0].sync_imports(quiet=True):
            from colorsys import hls_to_rgb
        assert colorsys and hls_to_rgb
        assert rc[:]["text.__name__"] == ["string"] * 3 and text, "the others were imported"
    finally:
        rc[:].execute("del sys.modules['colorsys']", block=True)
    assert capsys.readouterr().out == ""


def test_failed_import_here_is_raised_here_and_not_sent(rc: Client) -> None:
    view = rc[:]
    original = builtins.__import__
    with pytest.raises(ModuleNotFoundError), view.sync_imports(quiet=True):
        import nonsense_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401
    assert view.history == [] and builtins.__import__ is original


def test_only_statements_of_the_block_count(rc: Client) -> None:
    def import_elsewhere() -> None:
        import colorsys  # noqa: F401

    def import_in_a_thread() -> None:
        import calendar  # noqa: F401

    view = rc[:]
    with view.sync_imports(quiet=True):
        import_elsewhere()
        thread = threading.Thread(target=import_in_a_thread)
        thread.start()
        thread.join(10)
        __import__("string")
        import json
        import json as again  # noqa: F401
    assert json and len(view.history) == 2 * 3


def test_imports_on_the_engines_only(rc: Client) -> None:
    rc[:].execute("import sys, types; sys.modules['only_there'] = types.ModuleType('only_there')", block=True)
    rc[:].execute("sys.modules['only_there'].word = 'here'", block=True)
    with rc[:].sync_imports(local=False, quiet=True):
        import only_there as o  # type: ignore[import-not-found]
        from only_there import word as w
    assert rc[:]["o.word, w"] == [("here", "here")] * 3
    with pytest.raises(AttributeError, match="on the engines only"):
        _ = o.word
    assert repr(w) == "<only_there.word, on the engines only>"


def test_names_of_a_module_are_what_they_were_after_imports_elsewhere(rc: Client) -> None:
    namespace = {"view": rc[:], "json": "mine"}
    exec("with view.sync_imports(local=False, quiet=True):\n    import json, colorsys as c", namespace)
    assert namespace["json"] == "mine" and "c" not in namespace
    assert rc[:]["json.__name__, c.__name__"] == [("json", "colorsys")] * 3


def test_star_import_is_one_there_too(rc: Client) -> None:
    namespace = {"view": rc[:]}
    exec("with view.sync_imports(quiet=True):\n    from colorsys import *", namespace)
    assert "hls_to_rgb" in namespace and rc[:]["hls_to_rgb.__name__"] == ["hls_to_rgb"] * 3


def test_blocks_of_threads_and_nested_ones_do_not_disturb_each_other(rc: Client) -> None:
    original = builtins.__import__
    inside, leave = threading.Event(), threading.Event()
    first, second = rc[0], rc[1]

    def run() -> None:
        with second.sync_imports(quiet=True):
            inside.set()
            assert leave.wait(10)
            import calendar  # noqa: F401

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(10)
    with ExitStack() as stack:
        stack.enter_context(first.sync_imports(quiet=True))
        import colorsys  # noqa: F401
    leave.set()
    thread.join(10)
    assert builtins.__import__ is original
    assert len(first.history) == len(second.history) == 1
    assert first["colorsys.__name__"] == "colorsys" and second["calendar.__name__"] == "calendar"
