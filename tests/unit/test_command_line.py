"""The command line without any process: parsing, exit codes, what is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpcviews import errors
from hpcviews.cli import exit_codes
from hpcviews.cli.app import main
from hpcviews.cli.logs import list_logs
from hpcviews.cli.run import make_script_argv
from hpcviews.cli.status import describe_status, render_status
from hpcviews.cli.table import render_columns
from hpcviews.cluster.cluster import Cluster, count_cores
from hpcviews.errors import NoCluster, UnknownLauncher, UsageError
from hpcviews.records import Place
from hpcviews.wire import messages as m


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPCVIEWS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HPCVIEWS_CLUSTER", raising=False)
    monkeypatch.delenv("HPCVIEWS_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["run", "--n", "2"], 2, "Missing argument 'SCRIPT'"),
        (["run", "--n", "2", "missing.py"], 2, "no script 'missing.py'"),
        (["run", "--n", "0", "-c", "pass"], 2, "must be at least 1, not 0"),
        (["run", "--n", "-3", "-c", "pass"], 2, "must be at least 1, not -3"),
        (["run", "--n", "four", "-c", "pass"], 2, "'four' is not a valid integer"),
        (["run", "--n", "2.5", "-c", "pass"], 2, "'2.5' is not a valid integer"),
        (["run", "--launcher", "mpiexek", "-c", "pass"], 2, "did you mean 'mpiexec'"),
        (["run", "--bogus", "-c", "pass"], 2, "No such option"),
        (["run", "-m", "-c", "pass"], 2, "give -m or -c, not both"),
        (["start", "--name", "a/b"], 2, "cannot be the name of a cluster"),
        (["start", "--timeout", "0"], 2, "timeout must be a positive number"),
        (["start", "--timeout", "nan"], 2, "timeout must be a positive number"),
        (["stop"], 3, "no cluster is running"),
        (["stop", "--all", "x"], 2, "not both"),
        (["status"], 3, "hpcviews start --n 4"),
        (["status", "nobody"], 3, "no cluster 'nobody'"),
        (["logs", "nobody"], 3, "no cluster 'nobody'"),
        (["logs", "--engine", "-1"], 2, "--engine"),
        (["dance"], 2, "No such command 'dance'"),
    ],
)
def test_bad_input_is_one_message_and_a_code(
    argv: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert text in err
    assert "Traceback" not in err
    assert out == ""
    assert not (home / "clusters").exists() or not list((home / "clusters").iterdir())


def test_debug_variable_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCVIEWS_DEBUG", "1")
    assert main(["status"]) == exit_codes.NO_CLUSTER
    assert "Traceback" in capsys.readouterr().err


def test_bug_is_reported_as_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcviews.records.list_clusters", lambda: 1 / 0)
    assert main(["list"]) == exit_codes.FAILURE
    assert "a bug in hpcviews: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NameInUse("x"), 2),
        (errors.NoCluster("x"), 3),
        (errors.NoShow("x"), 4),
        (errors.NotEnoughFiles("x"), 4),
        (errors.ControllerUnreachable("x"), 5),
        (errors.ControllerLost("x"), 5),
        (errors.AccessRefused("x"), 6),
        (errors.VersionMismatch("x"), 6),
        (KeyboardInterrupt(), 130),
        (OSError("x"), 1),
    ],
)
def test_errors_have_their_exit_codes(error: BaseException, code: int) -> None:
    assert exit_codes.get_exit_code(error) == code


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for code, text in exit_codes.MEANINGS.items():
        assert f"{code}    {text}" in out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import hpcviews

    assert main(["--version"]) == 0
    assert hpcviews.__version__ in capsys.readouterr().out


# ---------------------------------------------------------------- Cluster's arguments


@pytest.mark.parametrize("n", ["4", 2.0, [4], True, 0, -1])
def test_number_of_engines_must_be_a_whole_number_of_at_least_one(n: object) -> None:
    with pytest.raises(UsageError, match=r"the number of engines"):
        Cluster(n)  # type: ignore[arg-type]


def test_number_of_engines_may_be_numpys() -> None:
    import numpy as np

    assert Cluster(np.int64(3)).n == 3


def test_default_is_an_engine_per_core() -> None:
    assert Cluster().n == count_cores()


def test_unknown_launcher_is_refused_at_once() -> None:
    with pytest.raises(UnknownLauncher, match=r"there are: .*local"):
        Cluster(2, "nope")


def test_options_are_a_list() -> None:
    with pytest.raises(UsageError, match="list of arguments"):
        Cluster(2, options="--bind-to none")


def test_cluster_that_does_not_run_says_so() -> None:
    cluster = Cluster(2)
    with pytest.raises(NoCluster, match="call start"):
        cluster.client()
    with pytest.raises(UsageError, match="gets a name"):
        _ = cluster.name
    cluster.stop()
    assert repr(cluster) == "<Cluster (unnamed): 2 engines by local, not running>"


# ---------------------------------------------------------------- run


def test_script_is_run_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "s.py").touch()
    argv, path = make_script_argv("sub/s.py", ("--n", "3", "-x"), False, False)
    assert argv == [sys.executable, "sub/s.py", "--n", "3", "-x"]
    assert path == str(tmp_path.resolve() / "sub"), "its own modules are beside it"


def test_modules_and_code_are_run_as_python_runs_them(tmp_path: Path) -> None:
    assert make_script_argv("pkg.mod", ("a",), True, False)[0] == [sys.executable, "-m", "pkg.mod", "a"]
    assert make_script_argv("print(1)", (), False, True)[0] == [sys.executable, "-c", "print(1)"]


# ---------------------------------------------------------------- what is printed


def make_status() -> m.Status:
    info = m.EngineInfo(3, "u", 0, 3, 3, 4, 1, "node7", 77, "3.11", "MPICH 5.0.2", 1.0)
    set_info = m.SetInfo(0, "mpiexec", 4, "degraded", "engine 1 was lost: killed", "", "/logs/set-0.log")
    return m.Status(
        1, "degraded", "node1", 11, "0.1.0", 5.0, ["ipc:///x", "tcp://10.0.0.1:5"], 2, 7, 0,
        [m.EngineStatus(info, "busy", "", 2, 40)], [set_info],
    )  # fmt: skip


def test_status_as_json_has_the_documented_shape() -> None:
    described = json.loads(json.dumps(describe_status("one", make_status())))
    assert described["name"] == "one"
    assert described["state"] == "degraded"
    assert described["controller"]["pid"] == 11
    (engine,) = described["engines"]
    expected = {"id": 3, "state": "busy", "host": "node7", "pid": 77, "rank": 3, "queued": 2, "completed": 40}
    assert expected.items() <= engine.items()
    assert described["sets"][0]["why"] == "engine 1 was lost: killed"


def test_status_for_people_says_what_is_wrong() -> None:
    text = render_status(describe_status("one", make_status()))
    assert "one: degraded" in text
    assert "1 of 4 engines by mpiexec; engine 1 was lost: killed" in text
    assert "clients     1, 7 tasks wait" in text, "this command does not count itself"
    assert text.splitlines()[-1].split() == ["3", "busy", "node7", "77", "3", "2", "40"]


def test_list_of_nothing_is_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    text = render_columns(("A", "B"), [("x" * 200, 1), ("y", None)])
    assert text.splitlines() == ["A" + " " * 199 + "  B", "x" * 200 + "  1", "y" + " " * 199 + "  None"]


def test_logs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.logs.mkdir()
    for name in ("engine-0.10.log", "engine-0.9.log", "engine-1.0.log", "controller.log", "set-0.log"):
        (place.logs / name).write_text("x")
    (place.logs / "engine-0.0.log").touch()
    names = [path.name for path in list_logs(place, None)]
    assert names == ["controller.log", "set-0.log", "engine-0.9.log", "engine-0.10.log", "engine-1.0.log"]
    assert [path.name for path in list_logs(place, 0)] == ["engine-0.0.log"], "one that is asked for may be empty"
    with pytest.raises(NoCluster, match="0 to 3"):
        list_logs(place, 4)
