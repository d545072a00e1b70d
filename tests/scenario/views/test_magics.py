"""The magics in an IPython, on real engines: what each option does, and what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from bare_cluster import BareCluster
from shell import Shell, open_shell

import hpcviews
from hpcviews import AlreadyDisplayedError, AsyncResult, Client, CompositeError, NoSuchEngine, RemoteError


@pytest.fixture
def shell() -> Iterator[Shell]:
    with open_shell() as opened:
        yield opened


@pytest.fixture
def rc(cluster: BareCluster, shell: Shell) -> Iterator[Client]:
    client = cluster.connect(3)
    client[:].clear(block=True)
    shell.ip.user_ns["rc"] = client
    yield client
    client.close()


def text_of(shown: Any) -> list[str]:
    return [data["text/plain"] for data in shown.displays]


# ---------------------------------------------------------------- which magics there are


def test_the_first_client_in_ipython_makes_px_for_all_engines(rc: Client, shell: Shell) -> None:
    shown = shell.run("%px x = 5; print(x)")
    assert shown.error is None and shown.value is None
    assert sorted(shown.out.splitlines()) == [f"[stdout:{i}] 5" for i in range(3)]
    assert rc[:]["x"] == [5, 5, 5]
    for kind, name in [
        ("line", "px"),
        ("cell", "px"),
        ("line", "autopx"),
        ("line", "pxresult"),
        ("line", "pxconfig"),
        ("line", "result"),
    ]:
        assert shell.ip.find_magic(name, kind) is not None


def test_another_client_leaves_px_alone_unless_the_first_is_closed(
    cluster: BareCluster, rc: Client, shell: Shell
) -> None:
    from hpcviews.notebook.activation import _active

    second = cluster.connect(3)
    assert _active[""].view.client is rc
    rc.close()
    third = cluster.connect(3)
    assert _active[""].view.client is third
    assert shell.run("%px print(1)").error is None
    second.close()


def test_activate_with_a_suffix_adds_magics_of_that_name(rc: Client, shell: Shell) -> None:
    assert rc[1].activate("_one") is None
    view = rc.activate([0, 2], "_two")
    assert view.block and view.targets == [0, 2]
    rc[1].block = False
    assert isinstance(shell.run("%px_one a = 1").value, AsyncResult)
    shell.run("%px_two a = 2")
    shell.run("%px pass")
    assert rc[:]["a"] == [2, 1, 2]
    assert shell.run("%pxconfig_two --targets 0").error is None
    assert view.targets == 0


def test_activate_outside_of_ipython_warns(cluster: BareCluster) -> None:
    client = cluster.connect(3)
    with pytest.warns(UserWarning, match="not IPython"):
        assert client[:].activate() is None
    with pytest.warns(UserWarning, match="not IPython"):
        assert client.activate(1).targets == 1
    client.close()


def test_load_ext_connects_to_the_cluster(cluster: BareCluster, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcviews.notebook import activation

    made: list[Client] = []
    monkeypatch.setattr(activation, "Client", lambda: made.append(cluster.connect(3)) or made[-1])  # type: ignore[func-returns-value]
    assert shell.run("%load_ext hpcviews").error is None
    assert shell.run("%reload_ext hpcviews").error is None
    assert len(made) == 1
    assert "[stdout:2] 7" in shell.run("%px print(7)").out
    made[0].close()


def test_plain_python_imports_neither_ipython_nor_rich_for_a_client() -> None:
    code = "import sys, hpcviews; hpcviews.Client; print({'IPython', 'rich', 'hpcviews.notebook'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


# ---------------------------------------------------------------- %px and %%px


def test_px_leaves_braces_and_dollars_alone(rc: Client, shell: Shell) -> None:
    shell.ip.user_ns["x"] = "the client's"
    shell.run("%px x = 'the engine'; y = {'k': f'{x}', '$x': 1}")
    assert rc[0]["y"] == {"k": "the engine", "$x": 1}


def test_values_are_shown_with_engine_and_count(rc: Client, shell: Shell) -> None:
    counts = [reply.execution_count for reply in rc[:].execute("1", silent=False, block=True).get()]
    shown = shell.run("%%px\n_engine = 40\n_engine + 2")
    assert text_of(shown) == [f"Out[{i}:{count + 1}]: 42" for i, count in enumerate(counts)]
    assert text_of(shell.run("%px -5")) == [f"Out[{i}:{count + 2}]: -5" for i, count in enumerate(counts)]
    assert shell.run("%px None").displays == []


def test_a_single_engine_has_no_prefix(rc: Client, shell: Shell) -> None:
    shown = shell.run("%%px --targets 1\nprint('plain')\nimport sys\nprint('err', file=sys.stderr)")
    assert (shown.out, shown.err) == ("plain\n", "err\n")
    assert shell.run("%%px --targets 0,2\nprint('text')").out.count("[stdout:") == 2


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_several_lines_stand_below_their_prefix(rc: Client, shell: Shell, stream: str) -> None:
    shown = shell.run(f"%%px {stream} -t [0]\nprint('a\\nb')")
    assert shown.out == "[stdout:0] \na\nb\n"


def test_targets_of_one_call_in_all_their_forms(rc: Client, shell: Shell) -> None:
    shell.ip.user_ns["mine"] = [2, 1]
    for option, expected in {
        "1": [1],
        "-1": [2],
        "0,2": [0, 2],
        "[0,2]": [0, 2],
        "1:": [1, 2],
        "::2": [0, 2],
        "all": [0, 1, 2],
        "mine": [1, 2],
    }.items():
        rc[:].execute("hit = 0", block=True)
        assert shell.run(f"%%px -t {option}\nhit = 1").error is None
        assert [i for i, hit in enumerate(rc[:]["hit"]) if hit] == expected, option
    assert shell.ip.find_magic("px", "cell") and rc[:].apply_sync(int) == [0, 0, 0]


def test_targets_that_are_not_there_are_an_index_error(rc: Client, shell: Shell) -> None:
    error = shell.run("%%px -t 77\npass").error
    assert isinstance(error, NoSuchEngine) and isinstance(error, IndexError)
    for option in ("a:b", "undefined_name"):
        shown = shell.run(f"%%px -t {option}\npass")
        assert type(shown.error).__name__ == "UsageError" and option in str(shown.error)


def test_unknown_options_are_usage_errors(rc: Client, shell: Shell) -> None:
    for line in ("--nonsense", "--group-outputs colour", "--progress-after soon", "--signal-on-interrupt SIGNOTHING"):
        error = shell.run(f"%%px {line}\npass").error
        assert type(error).__name__ == "UsageError", line


def test_noblock_gives_an_async_result_and_pxresult_shows_it(rc: Client, shell: Shell) -> None:
    error = shell.run("%pxresult").error
    assert type(error).__name__ == "UsageError"
    assert "%pxresult recalls last %px result, which has not yet been used." in str(error)
    shown = shell.run("%%px --noblock\nprint('later')\n6 * 7")
    assert isinstance(shown.value, AsyncResult) and "%px" in repr(shown.value)
    for magic in ("%pxresult", "%result"):
        shown = shell.run(magic)
        assert shown.out == "".join(f"[stdout:{i}] later\n" for i in range(3))
        assert [text.split(": ")[1] for text in text_of(shown)] == ["42"] * 3
    assert shell.run("%pxresult --out kept").error is None
    assert isinstance(shell.ip.user_ns["kept"], AsyncResult)
    assert isinstance(shell.run("%%px -a\n1 / 0").value, AsyncResult)
    assert isinstance(shell.run("%pxresult").error, CompositeError)


def test_out_stores_the_result(rc: Client, shell: Shell) -> None:
    shell.run("%%px --out answer -b\n21 * 2")
    assert [reply.text for reply in shell.ip.user_ns["answer"].get()] == ["42"] * 3


def test_local_runs_the_cell_here_too(rc: Client, shell: Shell) -> None:
    shell.run("%%px --local\neverywhere = 3")
    assert shell.ip.user_ns["everywhere"] == 3 and rc[:]["everywhere"] == [3] * 3


def test_verbose_says_where_it_runs(rc: Client, shell: Shell) -> None:
    assert shell.run("%%px --verbose\npass").out == "Parallel execution on engine(s): all\n"
    assert "Async parallel execution on engine(s): (0, 1)\n" in shell.run("%%px --verbose -a -t 0,1\npass").out
    shell.run("%pxconfig --verbose")
    assert shell.run("%px pass").out.startswith("Parallel execution")
    assert shell.run("%%px --no-verbose\npass").out == ""


def test_long_lists_of_targets_are_cut_in_the_middle() -> None:
    from hpcviews.notebook.arguments import render_targets

    assert render_targets(list(range(10))) == str(list(range(10)))
    assert render_targets(list(range(20))) == "[0, 1, 2, 3, ..., 16, 17, 18, 19]"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("", ["stdout:0", "stdout:1", "stderr:0", "stderr:1"]),
        ("--group-outputs type", ["stdout:0", "stdout:1", "stderr:0", "stderr:1"]),
        ("-e", ["stdout:0", "stderr:0", "stdout:1", "stderr:1"]),
        ("-r", ["stdout:0", "stdout:1", "stderr:0", "stderr:1"]),
    ],
)
def test_output_is_grouped_as_asked(rc: Client, shell: Shell, option: str, expected: list[str]) -> None:
    shown = shell.run(f"%%px --no-stream {option} -t 0:2\nimport sys\nprint('o')\nprint('e', file=sys.stderr)\n1 + 1")
    assert re.findall(r"\[(\w+:\d)\]", shown.both) == expected
    assert len(shown.displays) == 2


def test_pxconfig_sets_defaults(rc: Client, shell: Shell) -> None:
    from hpcviews.notebook.activation import _active

    magics = _active[""]
    assert (magics.verbose, magics.progress_after_seconds, magics.signal_on_interrupt) == (False, 2.0, "SIGINT")
    shell.run("%pxconfig --noblock --no-stream --targets 1: --progress-after -1 --signal-on-interrupt term")
    assert not magics.view.block and not magics.stream_output and magics.view.targets == [1, 2]
    assert (magics.progress_after_seconds, magics.signal_on_interrupt) == (-1.0, "SIGTERM")
    assert isinstance(shell.run("%px 1").value, AsyncResult)
    shell.run("%pxconfig --block --stream -t all")
    assert magics.view.block and magics.stream_output and magics.view.targets == "all"
    assert isinstance(shell.run("%pxconfig -t 99").error, NoSuchEngine) and magics.view.targets == "all"


# ---------------------------------------------------------------- errors


def test_streamed_errors_are_shown_once_and_then_counted(rc: Client, shell: Shell) -> None:
    shown = shell.run("%%px\nprint('before')\n1 / 0")
    assert isinstance(shown.error, AlreadyDisplayedError) and str(shown.error) == "3 errors"
    assert isinstance(shown.error.original, CompositeError)
    assert shown.err.count("ZeroDivisionError: division by zero") == 3
    assert shown.out.count("before") == 3
    assert "3 errors" in shown.out and "Traceback" not in shown.out
    one = shell.run("%%px -t 1\nundefined")
    assert str(one.error) == "1 error" and "NameError" in one.err


def test_errors_without_streaming_come_after_the_output(rc: Client, shell: Shell) -> None:
    shown = shell.run("%%px --no-stream\nprint('before')\n1 / 0")
    assert isinstance(shown.error, CompositeError) and len(shown.error.elist) == 3
    assert shown.out.index("before") < shown.out.index("ZeroDivisionError")
    assert isinstance(shell.run("%%px --no-stream -t 0\n1 / 0").error, RemoteError)


# ---------------------------------------------------------------- %autopx


def test_autopx_sends_every_cell_until_it_is_called_again(rc: Client, shell: Shell) -> None:
    assert shell.run("%autopx").out == "%autopx enabled\n"
    shown = shell.run("where = 'engine'\nprint(where)")
    assert sorted(shown.out.splitlines()) == [f"[stdout:{i}] engine" for i in range(3)]
    assert isinstance(shell.run("1 / 0").error, AlreadyDisplayedError)
    assert "where" not in shell.ip.user_ns and rc[:]["where"] == ["engine"] * 3
    assert shell.run("  %autopx").out == "%autopx disabled\n"
    shell.run("where = 'here'")
    assert shell.ip.user_ns["where"] == "here" and rc[0]["where"] == "engine"


def test_autopx_cells_need_no_empty_line_to_be_complete(rc: Client, shell: Shell) -> None:
    shell.run("%autopx")
    assert shell.ip.check_complete("a = 1")[0] == "complete"
    assert shell.ip.check_complete("for i in range(3):")[0] == "incomplete"
    shell.run("%autopx")


def test_a_closed_client_says_so(rc: Client, shell: Shell) -> None:
    rc.close()
    error = shell.run("%px 1").error
    assert isinstance(error, hpcviews.UsageError) and "closed" in str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shell.run("1").value == 1
