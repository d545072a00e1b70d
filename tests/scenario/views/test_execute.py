"""Cells on engines: values, magics, figures, published data, tracebacks, and what a failing one keeps from running."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest
from bare_cluster import BareCluster

import hpcviews
from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until


def test_last_expression_is_the_value_like_in_a_notebook(rc: Client) -> None:
    reply = rc[0].execute("a = 20\na * 2 + 2", silent=False, block=True).get()
    assert reply.data == {"text/plain": "42"} and reply.text == "42" and reply["source"].startswith("a = 20")
    assert reply.execute_result == {"data": reply.data, "metadata": {}, "execution_count": reply.execution_count}
    assert repr(reply) == f"<ExecuteReply[{reply.execution_count}]: 42>" and reply.status == "ok"
    again = rc[0].execute("_ + 1", silent=False, block=True).get()
    assert again.text == "43" and again.execution_count == reply.execution_count + 1
    assert rc[0].execute("a", silent=True, block=True).get().execution_count == again.execution_count
    assert rc[0].execute("b = 1", silent=False, block=True).get().execute_result is None


def test_cell_may_await(rc: Client) -> None:
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x\nawait f(1)\nawait f(2)"
    assert [reply.text for reply in rc[:].execute(code, silent=False, block=True).get()] == ["2", "2", "2"]


def test_magics_and_commands_work_where_ipython_is(rc: Client) -> None:
    assert rc[1].execute("%time 40 + 2", silent=False, block=True).get().text == "42"
    assert rc[1].execute("said = !echo hello\nsaid[0]", silent=False, block=True).get().text == "'hello'"
    assert rc[1]["said[0]"] == "hello", "it is the same namespace"


def test_figure_comes_as_a_picture(rc: Client) -> None:
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    result = rc[2].execute(code, silent=False, block=True)
    (figure,) = result.outputs
    assert base64.b64decode(figure["data"]["image/png"]).startswith(b"\x89PNG")
    assert rc[2].execute("plt.plot([2, 1]);", silent=False, block=True).outputs, "and in the cells after it"


def test_rich_displays_and_values_have_their_forms(rc: Client) -> None:
    code = (
        "%time 0\nfrom IPython.display import HTML, display\n"
        "print('before'); display(HTML('<b>bold</b>')); print('after')\nHTML('<i>value</i>')"
    )
    result = rc[0].execute(code, silent=False, block=True)
    assert result.get().data["text/html"] == "<i>value</i>"
    assert [output["data"]["text/html"] for output in result.outputs] == ["<b>bold</b>"]
    assert "before\nafter\n" in result.stdout


def test_without_ipython_an_engine_runs_python_and_says_what_magics_need(
    mortal: BareCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A finder in front of all others that knows no IPython.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'IPython':\n"
        "            raise ModuleNotFoundError(\"No module named 'IPython'\", name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mortal.start_engines(1)
    rc = mortal.connect(1)
    assert rc[0].execute("6 * 7", silent=False, block=True).get().text == "42"
    with pytest.raises(hpcviews.RemoteError, match="need IPython where the engines run"):
        rc[0].execute("%time 1", block=True)


def test_failing_cell_keeps_the_cells_behind_it_from_running_and_nothing_else(rc: Client) -> None:
    view = rc[0]
    gate = view.apply_async(_wait_for_file, "/nonexistent-is-never-there")
    failing = view.execute("1 / 0", silent=False)
    cell, call = view.execute("ran = True", silent=True), view.apply_async(len, "ab")
    gate.interrupt()
    with pytest.raises(hpcviews.RemoteError, match="ZeroDivisionError"):
        failing.get(timeout=20)
    with pytest.raises(hpcviews.TaskAborted, match="earlier cell failed"):
        cell.get(timeout=20)
    assert call.get(timeout=20) == 2 and view.apply_sync(lambda: "ran" in globals()) is False
    quiet = view.execute("1 / 0", silent=True)
    assert view.execute("'runs'", silent=False).get(timeout=20).text == "'runs'"
    assert not quiet.successful()


def _wait_for_file(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):  # noqa: PTH110 - it travels
        time.sleep(0.01)


def test_traceback_of_a_cell_has_its_lines_and_no_frames_of_ours(rc: Client) -> None:
    for prefix in ("", "%time 0\n"):
        with pytest.raises(hpcviews.RemoteError) as caught:
            rc[0].execute(f"{prefix}def f(x):\n    return 1 / x\nf(0)", silent=False, block=True)
        text = caught.value.traceback
        assert "return 1 / x" in text and "f(0)" in text, text
        assert "hpcviews/engine" not in text and "IPython/core" not in text and "\x1b" not in text, text


def test_syntax_error_points_at_the_place(rc: Client) -> None:
    with pytest.raises(hpcviews.RemoteError) as caught:
        rc[0].execute("x = = 1", block=True)
    assert "x = = 1" in caught.value.traceback and "ast.py" not in caught.value.traceback


def test_published_data_is_seen_while_the_call_runs(rc: Client) -> None:
    def work() -> None:
        import hpcviews

        hpcviews.publish_data({"step": 1, "name": "x"})
        hpcviews.publish_data({"step": 2})
        while True:
            pass

    result = rc[0].apply_async(work)
    wait_until(lambda: result.data.get("step") == 2, 20, "what was published")
    assert result.data == {"step": 2, "name": "x"} and not result.done()
    result.interrupt()
    result.wait(20)


def test_publishing_is_for_engines() -> None:
    with pytest.raises(hpcviews.UsageError, match="no engine"):
        hpcviews.publish_data({})
    with pytest.raises(TypeError):
        hpcviews.publish_data([1])  # type: ignore[arg-type]


def test_flood_of_prints_is_bounded_and_order_is_kept(rc: Client) -> None:
    def flood() -> int:
        for number in range(300_000):
            print(number)
        return 1

    results = rc[:].apply_async(flood)
    assert results.get(timeout=100) == [1, 1, 1]
    for text in results.stdout:
        lines = text.splitlines()
        assert lines[:3] == ["0", "1", "2"] and len(text) < 6 * 2**20
        assert "dropped" in text or "cut" in text


def test_threads_of_user_code_print_to_the_request_that_runs(rc: Client) -> None:
    def work() -> None:
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()

    result = rc[0].apply_async(work)
    result.get(timeout=20)
    assert result.stdout == "from a thread\n"
