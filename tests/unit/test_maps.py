"""Cutting sequences into parts, and joining them again."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcviews.client import maps
from hpcviews.errors import UsageError

LENGTHS = [0, 1, 3, 4, 5, 10, 11]
STRUCTURED = np.dtype([("a", "i4"), ("b", "f8")])


def make_sequences(n: int) -> list[Any]:
    return [
        list(range(n)),
        tuple(range(n)),
        "abcdefghijkl"[:n],
        b"abcdefghijkl"[:n],
        bytearray(b"abcdefghijkl"[:n]),
        range(n),
        range(5, 5 + 3 * n, 3),
        range(n, 0, -1),
        np.arange(n),
        np.arange(n, dtype="i2"),
        np.arange(n).astype("M8[s]"),
        np.arange(2 * n, dtype=">f4").reshape(n, 2),
        np.asfortranarray(np.arange(6.0 * n).reshape(n, 2, 3)),
        np.zeros(n, dtype=STRUCTURED),
        np.array([None] * n, dtype=object),
        np.ma.masked_array(np.arange(n), mask=[i % 2 == 0 for i in range(n)]),
    ]


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("parts", [1, 4, 7])
@pytest.mark.parametrize("n", LENGTHS)
def test_joining_undoes_cutting_whatever_the_type(n: int, parts: int, dist: str) -> None:
    for seq in make_sequences(n):
        cut = maps.partition(seq, parts, dist)
        assert len(cut) == parts
        back = maps.join(cut, dist)
        assert type(back) is type(seq)
        assert len(back) == n
        if isinstance(seq, np.ndarray):
            assert back.dtype == seq.dtype and back.shape == seq.shape
            np.testing.assert_array_equal(back, seq)
            if isinstance(seq, np.ma.MaskedArray):
                np.testing.assert_array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(seq))
        else:
            assert back == seq


def test_first_blocks_are_the_longer_ones() -> None:
    assert [len(part) for part in maps.partition(range(10), 4)] == [3, 3, 2, 2]
    assert maps.partition(list(range(10)), 4, "r") == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


@given(st.integers(0, 200), st.integers(1, 20), st.sampled_from(["b", "r"]))
def test_parts_are_balanced_and_complete(n: int, parts: int, dist: str) -> None:
    cut = maps.partition(list(range(n)), parts, dist)
    sizes = [len(part) for part in cut]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert sorted(itertools.chain(*cut)) == list(range(n))
    assert maps.join(cut, dist) == list(range(n))


def test_parts_of_an_array_are_views_of_it() -> None:
    array = np.arange(100.0).reshape(20, 5)
    for dist in "br":
        assert all(np.shares_memory(part, array) for part in maps.partition(array, 3, dist))


def test_fortran_order_survives_cutting_and_joining() -> None:
    array = np.asfortranarray(np.arange(40.0).reshape(10, 4))
    parts = maps.partition(array, 3)
    assert all(part.flags.f_contiguous for part in parts)
    assert maps.join(parts).flags.f_contiguous


@pytest.mark.parametrize(
    "seq", [iter(range(5)), {1: 0, 2: 0}, {1: 0, 2: 0}.values(), {3, 4}, deque([1, 2, 3]), (i for i in "ab")]
)
def test_other_iterables_become_lists(seq: Any) -> None:
    expected = list(seq) if not hasattr(seq, "__next__") else None
    cut = maps.partition(seq, 2)
    assert all(isinstance(part, list) for part in cut)
    if expected is not None:
        assert maps.join(cut) == expected


def test_join_promotes_types_of_arrays_that_differ() -> None:
    joined = maps.join([np.arange(2), np.arange(2) + 0.5])
    assert joined.dtype == np.float64
    assert maps.join([np.arange(2), np.arange(2) + 0.5], "r").tolist() == [0, 0.5, 1, 1.5]


def test_parts_that_are_no_sequences_stay_a_list() -> None:
    assert maps.join([1, 2.5]) == [1, 2.5]
    assert maps.join([np.float64(1), np.float64(2)]) == [1, 2]
    zero_dim = maps.join([np.array(1), np.array(2)])
    assert isinstance(zero_dim, list) and [int(x) for x in zero_dim] == [1, 2]
    assert maps.join([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert maps.join([]) == []


def test_ranges_of_another_origin_become_a_list() -> None:
    assert maps.join([range(3), range(10, 12)]) == [0, 1, 2, 10, 11]


def test_joining_a_huge_range_costs_nothing() -> None:
    whole = range(10**12)
    assert maps.join(maps.partition(whole, 3)) == whole
    assert maps.join(maps.partition(whole, 3, "r"), "r") == whole


def test_flatten_unwraps_all_or_nothing() -> None:
    assert maps.flatten_parts([[1], [2]]) == [1, 2]
    assert maps.flatten_parts([[1], []]) == [[1], []]
    assert maps.flatten_parts([[1, 2], [3]]) == [[1, 2], [3]]
    array = maps.flatten_parts(maps.partition(np.arange(6).reshape(2, 3), 2))
    assert [part.tolist() for part in array] == [[0, 1, 2], [3, 4, 5]]


def test_unknown_distribution_is_named() -> None:
    with pytest.raises(UsageError, match="'z'"):
        maps.partition([1], 2, "z")


def test_what_cannot_be_iterated_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="int 5"):
        maps.partition(5, 2)


@pytest.mark.parametrize(
    ("sequences", "count"),
    [
        (([1, 2, 3],), 3),
        (([1, 2, 3], "ab"), 2),
        ((range(10), itertools.count()), 10),
        ((iter("abc"), itertools.count()), 3),
        ((itertools.islice(itertools.count(), 4), range(9)), 4),
        (({"k": 1, "l": 2},), 2),
        ((np.arange(6).reshape(3, 2), [1, 2, 3, 4]), 3),
        ((iter(()),), 0),
        (([], itertools.count()), 0),
    ],
)
def test_map_cuts_to_the_shortest_like_the_builtin(sequences: tuple[Any, ...], count: int) -> None:
    ready, found = maps.cut_for_map(sequences)
    assert found == count
    assert len(ready) == len(sequences)
    assert all(len(seq[0:count]) == count for seq in ready)


def test_map_takes_items_as_iteration_gives_them() -> None:
    ready, _ = maps.cut_for_map([{"k": 1, "l": 2}, iter([(1, 2), (3, 4)])])
    assert ready == [["k", "l"], [(1, 2), (3, 4)]]


def test_map_without_sequences_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="at least one sequence"):
        maps.cut_for_map([])
    with pytest.raises(TypeError, match="int 5"):
        maps.cut_for_map([5])


def test_bounds() -> None:
    assert maps.chunk_bounds(5, 2) == [(0, 2), (2, 4), (4, 5)]
    assert maps.chunk_bounds(0, 2) == []
    assert maps.block_bounds(2, 4) == [(0, 1), (1, 2)]
    assert maps.block_bounds(5, 0) == []
