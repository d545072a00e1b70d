"""Objects through payloads: what is copied, what is not, and whose globals functions see."""

from __future__ import annotations

import gc
import sys
import threading
import types
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hpcviews.errors import SerializationError
from hpcviews.wire import payload as p


def through_the_wire(obj: Any, **options: Any) -> Any:
    """What the other side gets: frames received by copy=False are zmq frames with memory of their own."""
    import zmq

    sent = p.dumps(obj, **options)
    return p.loads(sent.data, [zmq.Frame(bytearray(frame.buffer), copy=False) for frame in sent.frames])


def test_big_array_leaves_by_a_frame_that_aliases_it() -> None:
    array = np.arange(100_000.0)
    sent = p.dumps(((array,), {"again": array[1:]}))
    assert len(sent.frames) == 2
    assert all(np.shares_memory(np.frombuffer(frame.buffer, np.uint8), array) for frame in sent.frames)
    assert len(sent.data) < 1000


def test_big_array_arrives_aliasing_the_received_frame_and_writable() -> None:
    import zmq

    sent = p.dumps(np.arange(100_000.0))
    frame = zmq.Frame(bytearray(sent.frames[0].buffer), copy=False)
    array = p.loads(sent.data, [frame])
    assert np.shares_memory(array, np.frombuffer(frame.buffer, np.uint8))
    array[0] = -1
    assert frame.buffer[:8] == np.float64(-1).tobytes()


@pytest.mark.parametrize("size", [0, 1, 100, 8_191, 8_192, 100_000])
@pytest.mark.parametrize("sender_may_write", [True, False])
def test_received_arrays_are_writable_whatever_their_size(size: int, sender_may_write: bool) -> None:
    array = np.arange(float(size))
    array.flags.writeable = sender_may_write
    received = through_the_wire([array])[0]
    assert received.flags.writeable and np.array_equal(received, array)


def test_strided_array_goes_out_of_band_after_one_copy() -> None:
    array = np.arange(200_000.0)[::2]
    sent = p.dumps(array)
    assert len(sent.frames) == 1 and sent.frames[0].buffer.nbytes == 800_000
    assert np.array_equal(through_the_wire(array), array)


def test_memory_order_survives() -> None:
    array = np.asfortranarray(np.random.default_rng(0).random((300, 400)))
    received = through_the_wire(array)
    assert received.flags.f_contiguous and not received.flags.c_contiguous and np.array_equal(received, array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (200, 300)])
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<u8", ">f4", "f2", "c16", "M8[ns]", "m8[D]", "U3", "S4", "O", [("a", "i4"), ("b", "f8", 3)]]
)
def test_every_dtype_and_shape_survives(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    received = through_the_wire(array)
    assert received.dtype == array.dtype and received.shape == shape and received.tobytes() == array.tobytes()


@given(
    st.recursive(
        npst.arrays(npst.scalar_dtypes(), npst.array_shapes(max_side=40)) | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_nesting_survives(obj: Any) -> None:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and b.flags.writeable
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        return bool(a == b)

    assert same(obj, through_the_wire(obj))


def test_memoryview_and_subclasses_survive() -> None:
    assert bytes(through_the_wire(memoryview(b"x" * 100_000))) == b"x" * 100_000
    masked = np.ma.masked_array(np.arange(5), [0, 1, 0, 0, 0])
    received = through_the_wire(masked)
    assert isinstance(received, np.ma.MaskedArray) and received.mask.tolist() == masked.mask.tolist()


def test_tracker_is_done_when_the_frames_are_gone() -> None:
    array = np.zeros(100_000)
    sent = p.dumps(array, track=True)
    tracker = sent.tracker()
    assert tracker is not None and not tracker.done
    del sent
    gc.collect()
    tracker.wait(5)
    assert p.dumps(array).tracker() is None


def test_sent_frames_do_not_keep_the_array() -> None:
    array = np.zeros(100_000)
    alive = weakref.ref(array)
    sent = p.dumps(array, track=True)
    tracker = sent.tracker()
    del array, sent
    gc.collect()
    assert tracker is not None
    tracker.wait(5)
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("obj", "named"),
    [(((1, threading.Lock()), {}), "argument 1 (a lock)"), (((), {"k": threading.Lock()}), "argument 'k' (a lock)")],
)
def test_what_cannot_be_pickled_is_named(obj: Any, named: str) -> None:
    with pytest.raises(SerializationError) as caught:
        p.dumps(obj)
    assert named in str(caught.value)


def test_missing_module_is_named_with_the_next_step() -> None:
    module = types.ModuleType("only_here")
    exec("def f(): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        sent = p.dumps(module.f)
    finally:
        del sys.modules["only_here"]
    with pytest.raises(SerializationError, match=r"No module named 'only_here'.*importable"):
        p.loads(sent.data, sent.frames)


# ---------------------------------------------------------------- functions of __main__


class TwoSides:
    """Runs code in a `__main__` of the sender's, and unpickles in one of the receiver's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        self.sender = types.ModuleType("__main__")
        self.receiver = types.ModuleType("__main__")
        p.forget_captured()

    def send(self, source: str, name: str = "f", engine_names: tuple[str, ...] = ()) -> Any:
        self.monkeypatch.setitem(sys.modules, "__main__", self.sender)
        exec(source, self.sender.__dict__)
        sent = p.dumps(self.sender.__dict__[name], engine_names=engine_names)
        self.monkeypatch.setitem(sys.modules, "__main__", self.receiver)
        return p.loads(sent.data, sent.frames)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> TwoSides:
    return TwoSides(monkeypatch)


def test_main_function_sees_what_was_pushed(sides: TwoSides) -> None:
    f = sides.send("def f(): return a + 1")
    sides.receiver.a = 41  # type: ignore[attr-defined]
    assert f() == 42


def test_pushed_names_win_over_the_senders_values(sides: TwoSides) -> None:
    sides.receiver.a = [1]  # type: ignore[attr-defined]
    assert sides.send("a = [1, 2, 3]\ndef f(): return len(a)")() == 1


def test_names_the_engine_lacks_come_with_the_function(sides: TwoSides) -> None:
    f = sides.send(
        "import math\nK = 2\ndef g(x): return K * x\ndef f(x): return [g(i) + math.pi * 0 for i in range(x)]"
    )
    assert f(3) == [0, 2, 4]


def test_a_redefined_helper_is_the_new_one(sides: TwoSides) -> None:
    sides.send("def g(): return 1\ndef f(): return g()")
    assert sides.send("def g(): return 2\ndef f(): return g()")() == 2


def test_a_function_kept_from_before_gets_its_own_helper_back(sides: TwoSides) -> None:
    old = sides.send("def g(): return 1\ndef f(): return g()")
    sides.send("def g(): return 2\ndef f(): return g()")
    p.refresh_captured(old)
    assert old() == 1


def test_global_statement_and_globals_reach_the_namespace(sides: TwoSides) -> None:
    sides.send("def f():\n    global a\n    a = 5\n    globals()['b'] = 6")()
    assert (sides.receiver.a, sides.receiver.b) == (5, 6)  # type: ignore[attr-defined]


def test_names_known_to_be_on_the_engine_do_not_travel(sides: TwoSides) -> None:
    source = "import numpy\na = numpy.zeros(100_000)\ndef f(): return a.sum()"
    sides.receiver.a = np.ones(3)  # type: ignore[attr-defined]
    assert sides.send(source, engine_names=("a",))() == 3
    assert "a" not in p._captured


def test_closures_recursion_and_classes_work(sides: TwoSides) -> None:
    f = sides.send(
        "class C:\n    def __init__(self, n): self.n = n\n"
        "def make(k):\n    def f(n): return C(k).n if n == 0 else 1 + f(n - 1)\n    return f\nf = make(10)"
    )
    assert f(3) == 13


def test_digest_names_the_content(sides: TwoSides) -> None:
    first, same, other = p.dumps(((1,), {})), p.dumps(((1,), {})), p.dumps(((2,), {}))
    assert p.digest(first) == p.digest(same) != p.digest(other)
    assert len(p.digest(first)) == 16


def test_functions_keep_the_file_they_come_from() -> None:
    def outer() -> object:
        return lambda: 1 / 0

    (inner,) = (c for c in outer.__code__.co_consts if isinstance(c, types.CodeType))
    received = through_the_wire(outer)
    assert received.__code__.co_filename == __file__
    assert received().__code__.co_filename == inner.co_filename == __file__
