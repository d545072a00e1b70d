"""Any object through a payload: values, types and memory order survive, arrays are writable, big ones uncopied."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import types
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hpcviews.wire import payload as p
from hpcviews.wire.reference import Reference

BIG = 100_000  # items; far above ZERO_COPY_BYTES_MIN for every dtype used here


def send(obj: Any) -> tuple[Any, p.Payload]:
    """What the other side gets, and what travelled; received frames are zmq frames with memory of their own."""
    import zmq

    sent = p.dumps(obj)
    return p.loads(sent.data, [zmq.Frame(bytearray(frame.buffer), copy=False) for frame in sent.frames]), sent


def same_array(a: np.ndarray[Any, Any], b: Any) -> bool:
    if not (type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and b.flags.writeable):
        return False
    return a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return same_array(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    return bool(a == b) or bool(a != a and b != b)


# ---------------------------------------------------------------- arrays

plain_dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    npst.complex_number_dtypes(endianness="?"),
    npst.datetime64_dtypes(endianness="?"),
    npst.timedelta64_dtypes(endianness="?"),
    npst.byte_string_dtypes(min_len=1),
    npst.unicode_string_dtypes(min_len=1),
)
structured_dtypes = npst.array_dtypes(plain_dtypes | npst.nested_dtypes(plain_dtypes, max_leaves=3), max_size=4)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def layouts(draw: st.DrawFn, array: Any) -> Any:
    """The array in some memory layout: C, Fortran, transposed, strided, reversed, read-only."""
    axes = draw(st.permutations(range(array.ndim)))
    steps = tuple(slice(None, None, draw(st.sampled_from([1, 1, 2, -1, -2]))) for _ in range(array.ndim))
    array = np.asarray(array, order=draw(st.sampled_from("CF"))).transpose(axes)[(*steps, ...)]
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


arrays = (plain_dtypes | structured_dtypes).flatmap(lambda d: npst.arrays(d, shapes)).flatmap(layouts)


@given(arrays)
@settings(max_examples=400, deadline=None)
def test_any_array_survives_in_any_layout_and_is_writable(array: np.ndarray[Any, Any]) -> None:
    received, _ = send(array)
    assert same_array(array, received)
    if array.flags.c_contiguous or array.flags.f_contiguous:
        assert received.flags.c_contiguous == array.flags.c_contiguous
        assert received.flags.f_contiguous == array.flags.f_contiguous


@given(npst.arrays(np.dtype(object), shapes, elements=st.none() | st.integers() | st.text() | st.tuples(st.integers())))
@settings(deadline=None)
def test_object_arrays_survive(array: np.ndarray[Any, Any]) -> None:
    assert same_array(array, send(array)[0])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype", ["?", "i1", ">u4", "f2", "c16", "M8[ns]", "m8[D]", "U3", "S4", [("a", "i4"), ("b", "f8", 3)]]
)
def test_a_big_array_of_any_dtype_is_one_frame(dtype: Any, order: Any) -> None:
    array = np.zeros((BIG, 2), dtype, order)
    received, sent = send(array)
    assert len(sent.frames) == 1 and len(sent.data) < 1000
    assert np.shares_memory(np.frombuffer(sent.frames[0].buffer, np.uint8), array.view() if order == "C" else array.T)
    assert same_array(array, received) and received.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize(
    "cut", [lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a.T[1:], lambda a: a.transpose(1, 0)[::-2]]
)
def test_a_big_strided_array_is_one_frame(cut: Any) -> None:
    array = cut(np.arange(BIG * 2.0).reshape(BIG // 2, 4))
    received, sent = send(array)
    assert [len(frame) for frame in sent.frames] == [array.nbytes]
    assert same_array(array, received)


class Temperature(np.ndarray[Any, Any]):
    """A subclass without a pickling of its own."""


class Scaled(np.ndarray[Any, Any]):
    """A subclass with one."""

    def __reduce__(self) -> Any:
        return make_scaled, (np.asarray(self), getattr(self, "scale", 1))


def make_scaled(array: Any, scale: int) -> Scaled:
    scaled: Scaled = array.view(Scaled)
    scaled.scale = scale  # type: ignore[attr-defined]
    return scaled


def test_subclasses_survive_out_of_band() -> None:
    warm = np.zeros(BIG).view(Temperature)
    warm.unit = "K"  # type: ignore[attr-defined]
    received, sent = send(warm)
    assert len(sent.frames) == 1 and same_array(warm, received) and received.unit == "K"
    received, sent = send(make_scaled(np.zeros(BIG), 3))
    assert len(sent.frames) == 1 and type(received) is Scaled and received.scale == 3
    records = np.zeros(BIG, [("a", "f8"), ("b", "i2")]).view(np.recarray)
    received, sent = send(records)
    assert len(sent.frames) == 1 and same_array(records, received) and np.shares_memory(received.b, received)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(np.zeros((BIG, 2)))
        received, sent = send(matrix)
        assert len(sent.frames) == 1 and same_array(matrix, received)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_mapped_file_arrives_as_an_array_in_memory(mode: Any) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(np.arange(float(BIG)).tobytes())
        file.flush()
        mapped = np.memmap(file.name, np.float64, mode)
        received, sent = send(mapped)
        assert len(sent.frames) == 1 and same_array(np.arange(float(BIG)), received)
        del mapped


@given(npst.arrays(plain_dtypes, npst.array_shapes(max_side=5)), st.booleans(), st.booleans(), st.data())
@settings(deadline=None)
def test_masked_arrays_survive(array: Any, has_mask: bool, hard: bool, data: st.DataObject) -> None:
    mask = data.draw(npst.arrays(bool, array.shape)) if has_mask else np.ma.nomask
    masked = np.ma.MaskedArray(array, mask, hard_mask=hard)
    received, _ = send(masked)
    assert type(received) is np.ma.MaskedArray and same_array(masked.data, received.data)
    assert (received.mask is np.ma.nomask) == (not has_mask) and np.array_equal(received.mask, masked.mask)
    assert received.hardmask == hard


def test_a_big_masked_array_is_two_frames() -> None:
    masked = np.ma.MaskedArray(np.arange(float(BIG)), np.arange(BIG) % 3 == 0, fill_value=7)
    received, sent = send(masked)
    assert len(sent.frames) == 2 and len(sent.data) < 1000
    assert received.fill_value == 7 and received.sum() == masked.sum()
    received[0] = 5.0
    assert received[0] == 5.0 and not received.mask[0] and masked.mask[0]


# ---------------------------------------------------------------- nesting


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


small_arrays = npst.arrays(plain_dtypes, npst.array_shapes(min_dims=0, min_side=0, max_side=40))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | small_arrays
keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys | st.tuples(keys, keys), inner, max_size=4),
        st.builds(Pair, inner, inner),
    )


nested = st.recursive(leaves, containers, max_leaves=12)


@given(nested)
@settings(max_examples=200, deadline=None)
def test_any_nesting_survives(obj: Any) -> None:
    assert same(obj, send(obj)[0])


@given(st.recursive(st.just("array"), containers, max_leaves=8))
@settings(max_examples=50, deadline=None)
def test_every_big_array_is_a_frame_at_any_depth(shape: Any) -> None:
    made: list[Any] = []

    def fill(part: Any) -> Any:
        if isinstance(part, str):
            made.append(np.full(10_000, float(len(made))))
            return made[-1]
        if isinstance(part, Pair):
            return Pair(fill(part.left), fill(part.right))
        if isinstance(part, dict):
            return {key: fill(value) for key, value in part.items()}
        return type(part)(map(fill, part))

    obj = fill(shape)
    received, sent = send(obj)
    assert len(sent.frames) == len(made) and same(obj, received)


def test_a_thousand_arrays_are_a_thousand_frames_and_one_array_is_one() -> None:
    assert len(send([np.zeros(8192) for _ in range(1000)])[1].frames) == 1000
    array = np.zeros(8192)
    received, sent = send({"a": array, "b": [array, (array,)]})
    assert len(sent.frames) == 1 and received["a"] is received["b"][0] is received["b"][1][0]


@pytest.mark.parametrize("size", [3, BIG])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: memoryview(np.arange(float(n))),
        lambda n: memoryview(np.zeros((n, 2), "i2")),
        lambda n: memoryview(bytes(n)),
    ],
)
def test_memoryviews_keep_format_and_shape(make: Any, size: int) -> None:
    view = make(size)
    received, sent = send(view)
    assert received == view and received.format == view.format and received.shape == view.shape
    assert len(sent.frames) == (size == BIG)
    assert send(view[::2] if view.ndim == 1 else view)[0].tolist()[0] == view.tolist()[0]
    assert send(memoryview(np.asfortranarray(np.arange(6).reshape(2, 3))))[0].tolist() == [[0, 1, 2], [3, 4, 5]]


# ---------------------------------------------------------------- references


@pytest.fixture
def engine_names(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("__main__")
    module.there = ["the engine's"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", module)


def test_a_reference_at_any_depth_becomes_the_engines_value(engine_names: None) -> None:
    r = Reference("there")
    obj = ((r, [r, {"k": (1, [r]), r.name: Pair(r, {2: [[[[r]]]]})}]), {"kw": {"deep": [r] * 100}})
    received, _ = send(obj)
    there = sys.modules["__main__"].there

    def count(part: Any) -> int:
        assert not isinstance(part, Reference)
        if part is there:
            return 1
        if isinstance(part, Pair):
            return count(part.left) + count(part.right)
        if isinstance(part, dict):
            return sum(map(count, part.values()))
        return sum(map(count, part)) if isinstance(part, list | tuple) else 0

    assert count(received) == 105


# ---------------------------------------------------------------- pandas

FRAMES = {
    "one dtype": lambda: pd.DataFrame(np.arange(BIG * 3.0).reshape(-1, 3), columns=list("abc")),
    "mixed": lambda: pd.DataFrame({"i": np.arange(BIG), "f": np.arange(BIG) / 2, "b": np.arange(BIG) % 2 == 0}),
    "dates": lambda: pd.DataFrame({"t": pd.date_range("2020", periods=BIG, freq="s"), "f": np.zeros(BIG)}),
    "zones": lambda: pd.DataFrame({"t": pd.date_range("2020", periods=BIG, freq="s", tz="Europe/Berlin")}),
    "nullable": lambda: pd.DataFrame({"n": pd.array([1, None] * (BIG // 2), dtype="Int64")}),
    "categories": lambda: pd.DataFrame({"c": pd.Categorical(["u", "v"] * (BIG // 2))}),
    "indexed": lambda: pd.DataFrame(
        {"f": np.zeros(BIG)}, index=pd.MultiIndex.from_product([range(4), range(BIG // 4)])
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_dataframes_survive_and_their_numbers_go_out_of_band(name: str) -> None:
    frame = FRAMES[name]()
    received, sent = send(frame)
    pd.testing.assert_frame_equal(received, frame)
    in_band = len(sent.data) + sum(len(f) for f in sent.frames if len(f) < p.ZERO_COPY_BYTES_MIN)
    assert sent.frames and in_band < 20_000, "numbers went through the pickle"
    received.iloc[0, 0] = received.iloc[1, 0]
    first = received[received.columns[0]].reset_index(drop=True)
    pd.testing.assert_series_equal(first[:1], first[1:2].reset_index(drop=True))
    pd.testing.assert_frame_equal(frame, FRAMES[name]())


@pytest.mark.parametrize(
    "obj",
    [
        pd.Series(np.arange(float(BIG)), name="s"),
        pd.Index(np.arange(float(BIG)), name="i"),
        pd.RangeIndex(BIG),
        pd.DatetimeIndex(pd.date_range("2020", periods=BIG, freq="s")),
        pd.MultiIndex.from_product([range(300), range(400)]),
        pd.Series(pd.Categorical(["u", "v"] * (BIG // 2))),
        pd.Series(["text", None, "é"]),
        pd.Series([[1], {"k": 2}, None]),
        pd.interval_range(0, BIG),
        pd.period_range("2020", periods=BIG, freq="h"),
        pd.Series(np.zeros(BIG), dtype="Sparse[float]"),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_series_and_indexes_survive(obj: Any) -> None:
    received, sent = send(obj)
    compare = pd.testing.assert_series_equal if isinstance(obj, pd.Series) else pd.testing.assert_index_equal
    compare(received, obj)
    assert len(sent.data) < 20_000 and all(len(f) >= p.ZERO_COPY_BYTES_MIN for f in sent.frames)


# ---------------------------------------------------------------- scipy.sparse

BIG_BUFFERS = {"csr": 2, "csc": 2, "bsr": 2, "coo": 3, "dia": 1}


@pytest.mark.parametrize("kind", [sparse.coo_matrix, sparse.coo_array])
@pytest.mark.parametrize("form", ["csr", "csc", "bsr", "coo", "dia", "lil", "dok"])
def test_sparse_matrices_survive_and_their_numbers_go_out_of_band(form: str, kind: Any) -> None:
    small = kind(sparse.random(30, 20, 0.1, random_state=0)).asformat(form)
    received, _ = send(small)
    assert type(received) is type(small) and (received != small).nnz == 0
    if form in BIG_BUFFERS:
        big = sparse.eye(BIG) if form == "dia" else sparse.random(2000, 2000, 0.05, random_state=0)
        matrix = kind(big).asformat(form)
        received, sent = send([matrix])
        assert len(sent.frames) == BIG_BUFFERS[form] and len(sent.data) < 20_000
        assert (received[0] != matrix).nnz == 0
        received[0].data[:] = 0
        assert received[0].sum() == 0 and matrix.sum() > 0
