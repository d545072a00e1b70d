"""Views on real engines: calling, namespaces, sequences, maps, errors."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_cluster import BareCluster

import hpcviews
from hpcviews import (
    Client,
    CompositeError,
    NoSuchEngine,
    Reference,
    RemoteError,
    SerializationError,
    TaskAborted,
)

ARRAYS = [
    np.arange(10),
    np.arange(100_000.0).reshape(1000, 100),
    np.asfortranarray(np.arange(60_000.0).reshape(300, 200)),
    np.arange(20_000)[::2],
    np.arange(10).astype("M8[s]"),
    np.zeros(7, dtype=[("a", "i4"), ("b", "f8")]),
    np.array(["a", None, 3], dtype=object),
    np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 1, 0]),
    np.empty((0, 3)),
    np.arange(3, dtype=">i2"),
]


# ---------------------------------------------------------------- calling


def test_one_engine_gives_a_value_several_a_list(rc: Client) -> None:
    assert rc[1].apply_sync(lambda a, b=1, *, f=0: a + b + f, 2, b=3, f=4) == 9
    assert rc[[1]].apply_sync(int) == [0]
    assert rc[:].apply_sync(divmod, 7, 2) == [(3, 1)] * 3
    pids = rc[:].apply_sync(os.getpid)
    assert len(set(pids)) == 3 and os.getpid() not in pids
    assert rc[[2, 0]].apply_sync(os.getpid) == [pids[2], pids[0]]
    assert rc[::2].apply_sync(os.getpid) == pids[::2]
    assert rc[-1].apply_sync(os.getpid) == pids[2]
    assert rc.direct_view("all").apply_sync(os.getpid) == pids
    assert [info.pid for info in rc.engines.values()] == pids
    assert rc.load_balanced_view().apply_sync(os.getpid) in pids
    assert rc.load_balanced_view(targets=[1]).apply_sync(os.getpid) == pids[1]


def test_block_and_track_are_flags(rc: Client) -> None:
    view = rc.direct_view(block=True)
    assert view.apply(int) == [0, 0, 0]
    view.block = False
    ar = view.apply(int)
    assert isinstance(ar, hpcviews.AsyncResult) and ar.get(10) == [0, 0, 0]
    view.targets = 1
    assert view.apply(int).get(10) == 0


def test_requests_to_one_engine_run_in_order(rc: Client) -> None:
    view = rc[:]
    view["trace"] = []
    append = make_main_function("lambda i: trace.append(i)")
    for i in range(200):
        view.apply_async(append, i)
    assert view["trace"] == [list(range(200))] * 3


def test_many_threads_call_at_once(rc: Client) -> None:
    view, balanced = rc[:], rc.load_balanced_view()

    def work(number: int) -> bool:
        for i in range(20):
            assert view.apply_sync(lambda x: x, (number, i)) == [(number, i)] * 3
            assert balanced.apply_sync(lambda x: x, (number, i)) == (number, i)
            assert balanced.map_sync(lambda x: x + number, range(5)) == [x + number for x in range(5)]
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_closures_and_classes_of_the_script_travel(rc: Client) -> None:
    factor = 3

    class Point:
        def __init__(self, x: int):
            self.x = x

    def scale(point: Point) -> Point:
        return Point(point.x * factor)

    assert rc[0].apply_sync(scale, Point(2)).x == 6
    assert [p.x for p in rc.load_balanced_view().map_sync(scale, [Point(1), Point(2)])] == [3, 6]


def test_output_comes_with_the_result(rc: Client) -> None:
    def talk(name: str) -> None:
        import sys

        print("hello", name)
        print("oh", file=sys.stderr)

    ar = rc[:].apply_async(talk, "you")
    ar.get(10)
    assert ar.stdout == ["hello you\n"] * 3 and ar.stderr == ["oh\n"] * 3
    assert ar.engine_id == [0, 1, 2] and ar.status == ["ok"] * 3
    assert all(m.submitted <= m.received and m.started <= m.completed for m in ar.metadata)
    assert ar.serial_time < 5 and ar.wall_time < 10 and ar.progress == 3


# ---------------------------------------------------------------- namespaces


def test_namespaces_are_dictionaries(rc: Client) -> None:
    view = rc[:]
    view["a"] = 5
    assert view["a"] == [5, 5, 5] and rc[1]["a"] == 5 and view.get(["a", "a + 1"]) == [[5, 6]] * 3
    assert view.push({"b": [1], "d": {}}, block=True) == [None] * 3
    assert rc[0].push({"only": 1}, block=True) is None
    assert view.push({"b[0]": 7, "d['z']": 8}, block=True) == [None] * 3
    assert view.pull(("b", "d"), block=True) == [[[7], {"z": 8}]] * 3
    assert view.update({"c": 1}).get(10) == [None] * 3
    assert rc[0].pull("only", block=True) == 1
    with pytest.raises(RemoteError, match="name 'only' is not defined") as caught:
        _ = rc[1]["only"]
    assert isinstance(caught.value.__cause__, NameError) and caught.value.engine_id == 1
    with pytest.raises(RemoteError, match="SyntaxError"):
        rc[1].push({"a b": 1}, block=True)
    view.clear(block=True)
    with pytest.raises(CompositeError, match="NameError"):
        _ = view["a"]


def test_source_is_executed_in_the_namespace(rc: Client, tmp_path: Path) -> None:
    view = rc[:]
    ar = view.execute("import math\nx = 6\nprint('six')\nx * 7", silent=False, block=True)
    assert [reply.text for reply in ar] == ["42"] * 3
    assert [reply.stdout for reply in ar.get()] == ["six\n"] * 3
    assert repr(ar.get()[0]).endswith("]: 42>")
    assert view["x"] == [6] * 3
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        rc[0].execute("def f():\n    return 1 / 0\nf()", block=True)
    assert "return 1 / 0" in str(caught.value)
    script = tmp_path / "a script.py"
    script.write_text("y = x + 1\nraise ValueError(y)")
    with pytest.raises(RemoteError, match="ValueError: 7") as caught:
        rc[2].run(script, block=True)
    assert "a script.py" in caught.value.traceback
    assert rc[2]["y"] == 7
    with pytest.raises(FileNotFoundError):
        view.run(tmp_path / "missing.py")


def test_functions_see_what_was_pushed(rc: Client) -> None:
    view = rc[:]
    rc[0].push({"v": 10}, block=True)
    rc[1].push({"v": 20}, block=True)
    rc[2].push({"v": 30}, block=True)
    f = make_main_function("lambda: v * 2", v="the client's own")
    assert view.apply_sync(f) == [20, 40, 60]


def make_main_function(source: str, **main_globals: Any) -> Any:
    """A function as a script's own: defined in __main__, with these globals there."""
    import __main__

    namespace = {"__name__": "__main__", **main_globals}
    function = eval(source, namespace)
    function.__module__ = __main__.__name__
    return function


def test_references_are_evaluated_on_the_engine(rc: Client) -> None:
    view = rc[:]
    for i in range(3):
        rc[i].push({"n": i, "box": {"deep": [i]}}, block=True)
    assert view.apply_sync(lambda x: x, Reference("n")) == [0, 1, 2]
    nested = view.apply_sync(lambda x, *, k: (x, k), [[{"a": Reference("n + 1")}]], k=(Reference("box['deep'][0]"),))
    assert nested == [([[{"a": i + 1}]], (i,)) for i in range(3)]
    with pytest.raises(RemoteError, match="NameError: name 'missing'"):
        rc[0].apply_sync(lambda x: x, Reference("missing"))
    view.execute("def f(x): return x + n", block=True)
    assert view.apply_sync(Reference("f"), 10) == [10, 11, 12]
    view.execute("def f(x): return -x", block=True)
    assert view.apply_sync(Reference("f"), 10) == [-10] * 3, "a function that is a reference must not be kept"
    assert view.map_sync(Reference("f"), range(4)) == [0, -1, -2, -3]
    with pytest.raises(TypeError, match="illegal name"):
        Reference(5)  # type: ignore[arg-type]


# ---------------------------------------------------------------- sequences


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize(
    "seq", [list(range(10)), (1, 2), "hello world", b"bytes", range(3, 30, 4), [], [[1], [2]]], ids=repr
)
def test_sequences_come_back_as_they_went(rc: Client, seq: Any, dist: str) -> None:
    view = rc[:]
    assert view.scatter("s", seq, dist=dist, block=True) is None
    back = view.gather("s", dist=dist, block=True)
    assert back == seq and type(back) is type(seq)


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_arrays_come_back_as_they_went(rc: Client, number: int, dist: str) -> None:
    view, array = rc[:], ARRAYS[number]
    view.scatter("s", array, dist=dist, block=True)
    back = view.gather("s", dist=dist).get(30)
    assert type(back) is type(array) and back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    if array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous:
        assert back.flags.f_contiguous, "Fortran order was lost"
    assert view.apply_sync(lambda x: x, array)[1].dtype == array.dtype


def test_parts_are_where_they_should_be(rc: Client) -> None:
    view = rc[:]
    view.scatter("s", range(8), block=True)
    assert view["list(s)"] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    view.scatter("s", iter(range(8)), dist="r", block=True)
    assert view["s"] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    view.scatter("me", rc.ids, flatten=True, block=True)
    assert view["me"] == [0, 1, 2]
    view.scatter("few", [1], flatten=True, block=True)
    assert view["few"] == [[1], [], []]
    view.scatter("s", range(4), targets=[2, 0], block=True)
    assert rc[2]["list(s)"] == [0, 1] and rc[0]["list(s)"] == [2, 3]
    assert list(view.gather("me")) == [0, 1, 2] == view.gather("me", block=True)
    with pytest.raises(CompositeError, match="gather") as caught:
        view.gather("undefined", block=True)
    assert len(caught.value.elist) == 3


# ---------------------------------------------------------------- maps


def test_map_gives_what_the_builtin_gives(rc: Client) -> None:
    array = np.arange(12.0).reshape(4, 3)
    cases: list[tuple[Any, ...]] = [
        (lambda x: x * x, range(10)),
        (lambda x, y: (x, y), [1, 2, 3], "ab"),
        (lambda x: x + 1, (i for i in range(5))),
        (lambda row: row.sum(), array),
        (lambda c: c.upper(), "hello"),
        (lambda k: k, {"a": 1, "b": 2}),
        (lambda x: x, []),
    ]
    for f, *sequences in cases:
        sequences = [list(s) if hasattr(s, "__next__") else s for s in sequences]
        expected = list(map(f, *sequences))
        for view in (rc[:], rc.load_balanced_view()):
            assert view.map_sync(f, *sequences) == expected
            assert list(view.imap(f, *sequences)) == expected
        assert rc.load_balanced_view().map_sync(f, *sequences, chunksize=3) == expected


def test_map_of_a_hundred_thousand_tasks_is_right(rc: Client) -> None:
    n = 100_000
    view = rc.load_balanced_view()
    ar = view.map_async(lambda x: x + 1, range(n))
    assert len(ar) == n
    assert sum(ar) == n * (n + 1) // 2
    assert ar.get() == list(range(1, n + 1))
    assert len(view.history) == n == ar.progress and not view.outstanding
    assert set(ar.engine_id) == {0, 1, 2}, "the tasks were not spread"


def test_map_yields_items_as_they_are_done(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait_for_gate(i: int) -> int:
        while i == 0 and not gate.exists():
            time.sleep(0.01)
        return i

    view = rc.load_balanced_view()
    ar = view.map_async(wait_for_gate, range(6), ordered=False)
    values = iter(ar)
    assert 0 not in [next(values) for _ in range(2)]
    assert not ar.done()
    gate.touch()
    assert set(values) | {1, 2, 3, 4, 5} == set(range(6))
    assert ar.get(10) == list(range(6))


def test_map_with_exceptions_has_one_entry_per_item(rc: Client) -> None:
    for view in (rc[:], rc.load_balanced_view()):
        values = view.map_sync(lambda x: 6 // x, [3, 0, 2, 0], return_exceptions=True)
        assert [values[0], values[2]] == [2, 3]
        assert all(isinstance(v, RemoteError) and v.ename == "ZeroDivisionError" for v in values[1::2])
        with pytest.raises(CompositeError, match="ZeroDivisionError"):
            view.map_sync(lambda x: 6 // x, [3, 0, 2, 0])


# ---------------------------------------------------------------- errors


def test_remote_error_tells_what_and_where(rc: Client) -> None:
    def outer(x: int) -> float:
        return 1 / x

    with pytest.raises(RemoteError) as caught:
        rc[2].apply_sync(outer, 0)
    error = caught.value
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert (error.engine_id, error.engine_info["pid"]) == (2, rc.engines[2].pid)  # type: ignore[index]
    assert "return 1 / x" in error.traceback and "[2:apply] ZeroDivisionError" in str(error)
    with pytest.raises(CompositeError) as composite:
        rc[:].apply_sync(outer, 0)
    assert [e.engine_id for e in composite.value.elist] == [0, 1, 2]  # type: ignore[attr-defined]
    with pytest.raises(RemoteError):
        rc.load_balanced_view().apply_sync(outer, 0)


def test_composite_error_of_an_engine_travels(rc: Client) -> None:
    def fail() -> None:
        raise CompositeError("inner", [ValueError("a")])

    with pytest.raises(RemoteError) as caught:
        rc[0].apply_sync(fail)
    assert isinstance(caught.value.__cause__, CompositeError)


def test_result_that_cannot_be_pickled_says_what_to_do(rc: Client) -> None:
    with pytest.raises(RemoteError, match="cannot be sent back") as caught:
        rc[0].apply_sync(threading.Lock)
    assert isinstance(caught.value.__cause__, SerializationError)
    assert rc[0].apply_sync(int) == 0


def test_unpicklable_argument_is_named_before_anything_is_sent(rc: Client) -> None:
    before = len(rc.history)
    with pytest.raises(SerializationError, match="argument 1"):
        rc[:].apply_async(max, 1, threading.Lock())
    assert len(rc.history) == before


def test_unknown_engine_is_one_exception(rc: Client) -> None:
    for ask in (lambda: rc[99], lambda: rc[[0, 99]], lambda: rc[:].pull("x", targets=99)):
        with pytest.raises(NoSuchEngine, match=r"99.*\[0, 1, 2\]"):
            ask()


def test_withdrawn_tasks_have_not_run(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait_for_gate() -> None:
        while not gate.exists():
            time.sleep(0.01)

    view = rc[0]
    running = view.apply_async(wait_for_gate)
    queued = [view.apply_async(lambda: 1) for _ in range(3)]
    queued[0].abort()
    assert queued[1].cancel()
    with pytest.raises(TaskAborted):
        queued[0].get(10)
    assert queued[0].status == "aborted"
    gate.touch()
    assert running.get(10) is None and queued[2].get(10) == 1
    assert view.wait(timeout=10)


def test_status_counts_what_ran(rc: Client, cluster: BareCluster) -> None:
    before = {e.info.id: e.completed for e in rc.status().engines}
    rc[:].apply_sync(int)
    status = rc.status()
    assert {e.info.id: e.completed for e in status.engines} == {i: n + 1 for i, n in before.items()}
    assert status.pid == cluster.controller.pid and status.waiting_tasks == 0 and status.malformed == 0
