"""Remote and parallel functions, on engines."""

from __future__ import annotations

import numpy as np
import pytest

from hpcviews import Client, CompositeError, Reference, RemoteError
from hpcviews.client.map_result import AsyncMapResult
from hpcviews.client.remote_function import ParallelFunction, RemoteFunction, parallel, remote
from hpcviews.client.results import AsyncResult


def square(x: int) -> int:
    """Doc of square."""
    return x * x


# ---------------------------------------------------------------- remote


def test_remote_function_runs_on_its_view(rc: Client) -> None:
    @rc[:].remote(block=True)
    def add(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    assert isinstance(add, RemoteFunction)
    assert add(1, y=5) == [6, 6, 6]
    assert (add.__name__, add.__doc__) == ("add", "RemoteFunction wrapping:\nAdds.")
    assert "y" in str(add.__signature__) and add.func(1) == 2 and add.block
    assert remote(rc[0], block=True)(square)(3) == 9
    assert rc.load_balanced_view().remote(block=True)(square)(4) == 16


def test_remote_function_takes_the_block_of_when_it_was_made(rc: Client) -> None:
    view = rc[:]
    waiting = view.remote(block=True)(square)
    asynchronous = view.remote()(square)
    view.block = True
    assert waiting(2) == [4, 4, 4]
    result = asynchronous(2)
    assert isinstance(result, AsyncResult) and result.get(10) == [4, 4, 4]
    assert view.remote()(square)(2) == [4, 4, 4]
    assert view.block, "the view's own flag is not touched"


def test_flags_of_a_function_are_set_for_its_calls(rc: Client) -> None:
    view = rc.load_balanced_view()
    on_second = view.remote(block=True, targets=[1])(lambda: __import__("os").getpid())
    assert {on_second() for _ in range(4)} == {rc.engines[1].pid}  # type: ignore[index]
    assert view.targets is None
    with pytest.raises(KeyError, match="Invalid name: 'nonsense'"):
        view.remote(nonsense=1)(square)
    with pytest.raises(TypeError, match=r"@view.remote\(\)"):
        view.remote(square)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@view.parallel\(\)"):
        view.parallel(square)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        view.remote()(5)  # type: ignore[arg-type]


def test_remote_function_is_the_plain_function_on_engines(rc: Client) -> None:
    remote_square = rc[:].remote(block=True)(square)
    assert rc[0].apply_sync(lambda: remote_square(5)) == 25
    assert rc[0].apply_sync(lambda f: f(6), remote_square) == 36


def test_remote_function_may_be_a_reference(rc: Client) -> None:
    rc[:].execute("def of_the_engine(x):\n    return -x", block=True)
    assert rc[:].remote(block=True)(Reference("of_the_engine"))(3) == [-3, -3, -3]


def test_error_of_a_remote_function_is_that_of_apply(rc: Client) -> None:
    with pytest.raises(CompositeError):
        rc[:].remote(block=True)(square)("x")
    with pytest.raises(RemoteError) as caught:
        rc[0].remote(block=True)(square)("x")
    assert isinstance(caught.value.__cause__, TypeError)


# ---------------------------------------------------------------- parallel


def test_parallel_function_gets_parts_and_joins(rc: Client) -> None:
    @rc[:].parallel(block=True)
    def double_all(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    assert isinstance(double_all, ParallelFunction)
    assert double_all(list(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert double_all([1]) == [2] and double_all([]) == []
    assert double_all(x for x in range(4)) == [0, 2, 4, 6]
    total = rc[:].parallel(block=True)(sum)
    assert total(range(6)) == [1, 5, 9], "values that are no sequences come as their list"


def test_parallel_function_joins_arrays_as_arrays(rc: Client) -> None:
    array = np.arange(14, dtype=np.float32).reshape(7, 2)
    for dist in ("b", "r"):
        scaled = parallel(rc[:], dist=dist, block=True)(lambda a, b: a * b)(array, array)
        assert isinstance(scaled, np.ndarray) and scaled.dtype == np.float32
        np.testing.assert_array_equal(scaled, array * array)
    balanced = rc.load_balanced_view().parallel(block=True, chunksize=3)(lambda a: a + 1)
    np.testing.assert_array_equal(balanced(array), array + 1)


def test_parallel_function_without_waiting_gives_a_map_result(rc: Client) -> None:
    view = rc[:]
    ar = view.parallel()(lambda xs: [x + 1 for x in xs])(range(7))
    assert isinstance(ar, AsyncMapResult) and len(ar.msg_ids) == 3 and view.history == ar.msg_ids
    assert list(ar) == ar.get(10) == list(range(1, 8))
    assert [len(part.get()) for part in ar.split()] == [3, 2, 2]
    empty = rc[:].parallel()(square)([])
    assert isinstance(empty, AsyncMapResult) and empty.get(0) == []


def test_parallel_function_says_what_it_does_not_take(rc: Client) -> None:
    f = rc[:].parallel(block=True)(lambda a, b: a)
    with pytest.raises(ValueError, match=r"equal length, but have \[7, 3\]"):
        f(range(7), range(3))
    with pytest.raises(TypeError, match="Unexpected keyword arguments: b"):
        f(range(7), b=range(7))
    with pytest.raises(TypeError, match="at least one"):
        f()
    with pytest.raises(ValueError, match="dist"):
        rc[:].parallel("z")(square)
    with pytest.warns(UserWarning, match="chunksize is ignored"):
        rc[:].parallel(chunksize=2)(square)


def test_parallel_function_maps(rc: Client) -> None:
    assert rc[:].parallel(block=True)(square).map(range(5)) == [0, 1, 4, 9, 16]
    pairs = rc.load_balanced_view().parallel(block=True, chunksize=2)(lambda a, b: (a, b))
    assert pairs.map(range(5), "abc") == [(0, "a"), (1, "b"), (2, "c")]
    ar = rc.load_balanced_view().parallel()(square).map(range(5))
    assert isinstance(ar, AsyncMapResult) and ar.get(10) == [0, 1, 4, 9, 16]


def test_failed_part_has_an_error_per_item_it_would_have_had(rc: Client) -> None:
    def invert(xs: list[int]) -> list[float]:
        return [1 / x for x in xs]

    view = rc[:]
    with pytest.raises(CompositeError, match="ZeroDivisionError"):
        view.parallel(block=True)(invert)([1, 2, 4, 0, 5])
    values = view.parallel(block=True, return_exceptions=True)(invert)([1, 2, 4, 0, 5])
    assert values[:2] == [1, 0.5] and values[4] == 0.2
    assert [type(v) for v in values[2:4]] == [RemoteError, RemoteError]
    sums = view.parallel(block=True, return_exceptions=True)(lambda xs: 1 / sum(xs))([1, 0, 2])
    assert sums[0] == 1 and isinstance(sums[1], RemoteError) and sums[2] == 0.5
