"""How a sequence is cut into parts for the engines, and how the parts are put together again.

Two distributions, as in IPython.parallel: "b" gives contiguous blocks, the first ``n % q`` of them one longer;
"r" deals the items out in turn. Cutting takes slices, so parts of an array are views of it along axis 0 and
nothing is copied here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

from hpcviews.errors import UsageError

DISTS = ("b", "r")


def check_dist(dist: str) -> None:
    """Raises UsageError unless `dist` is a distribution."""
    if dist not in DISTS:
        raise UsageError(f"dist must be 'b' (blocks) or 'r' (round robin), not {dist!r}")


# ---------------------------------------------------------------- cutting


def partition(seq: Any, parts: int, dist: str = "b") -> list[Any]:
    """`seq` as `parts` parts. Its type survives where it can be sliced; other iterables become lists."""
    check_dist(dist)
    seq = _as_sliceable(seq)
    if dist == "r":
        return [_slice(seq, slice(part, None, parts)) for part in range(parts)]
    cuts = _block_bounds(len(seq), parts)
    return [_slice(seq, slice(start, stop)) for start, stop in cuts]


def flatten_parts(parts: list[Any]) -> list[Any]:
    """Unwrap parts of one element, if all of them have one: a mixture of items and sequences helps nobody."""
    if any(len(part) != 1 for part in parts):
        return parts
    return [_first(part) for part in parts]


def cut_in_parts(sequences: Sequence[Any], parts: int, dist: str) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The parts of several sequences that belong together, and how many items each has; empty ones are left out.

    Raises:
        TypeError: One of them is no sequence or iterable.
        ValueError: They are not of one length; see `measure`.
    """
    columns = [partition(seq, parts, dist) for seq in sequences]
    rows = [row for row in zip(*columns, strict=True) if len(row[0])]
    return rows, [len(row[0]) for row in rows]


def measure(sequences: Sequence[Any]) -> tuple[list[Any], int]:
    """The sequences, things without a length made lists, and their common length.

    Raises:
        TypeError: There are none, or one of them is no iterable.
        ValueError: They are not of one length.
    """
    if not sequences:
        raise TypeError("a parallel function needs at least one sequence")
    ready = [_as_sliceable(seq) for seq in sequences]
    lengths = [len(seq) for seq in ready]
    if len(set(lengths)) > 1:
        raise ValueError(f"all sequences must have equal length, but have {lengths}")
    return ready, lengths[0]


def _block_bounds(length: int, parts: int) -> list[tuple[int, int]]:
    if not parts:
        return []
    size, longer = divmod(length, parts)
    bounds = []
    start = 0
    for part in range(parts):
        stop = start + size + (part < longer)
        bounds.append((start, stop))
        start = stop
    return bounds


def _as_sliceable(seq: Any) -> Any:
    if isinstance(seq, list | tuple | str | bytes | bytearray | range | memoryview) or _is_array(seq):
        return seq
    if _is_pandas(seq):
        return seq
    if not isinstance(seq, Iterable):
        raise TypeError(f"needs a sequence or another iterable, not {type(seq).__name__} {seq!r:.80}")
    if isinstance(seq, Sized) and hasattr(seq, "__getitem__") and not isinstance(seq, Mapping):
        try:
            seq[0:0]
        except (TypeError, KeyError, ValueError):  # deque and its like: a length, items, no slices
            return _as_list(seq)
        return seq
    return _as_list(seq)


def _as_list(seq: Any) -> list[Any]:
    return list(seq)


def _slice(seq: Any, where: slice) -> Any:
    if _is_pandas(seq):
        return seq.iloc[where]
    part = seq[where]
    if _is_array(part) and part.ndim > 1 and seq.flags.f_contiguous and not seq.flags.c_contiguous:
        # A slice of rows of a Fortran-ordered array is not contiguous, so serializing it copies in any case;
        # copied here it keeps its memory order.
        return part.copy(order="F")
    return part


def _first(part: Any) -> Any:
    return part.iloc[0] if _is_pandas(part) else part[0]


# ---------------------------------------------------------------- joining


def join(parts: Sequence[Any], dist: str = "b") -> Any:
    """The inverse of `partition`: one sequence of the parts' type.

    Parts that are no sequences (scalars, say) come back as the list of parts.
    """
    if not parts:
        return []
    kinds = {type(part) for part in parts}
    if _all_arrays(parts):
        return _join_arrays(parts, dist)
    if all(_is_pandas(part) for part in parts) and len(kinds) == 1:
        return _join_pandas(parts, dist)
    if all(_is_index(part) for part in parts):
        return parts[0].append(list(parts[1:]))
    if kinds == {str}:
        return "".join(_join_items(parts, dist))
    if kinds <= {bytes, bytearray, memoryview} and all(getattr(part, "format", "B") == "B" for part in parts):
        joined = bytes(_join_items(parts, dist))
        return bytearray(joined) if kinds == {bytearray} else joined
    if kinds == {range}:
        return _join_ranges(parts, dist)
    if kinds == {tuple}:
        return tuple(_join_items(parts, dist))
    if kinds <= {list, tuple, range, memoryview}:
        return _join_items(parts, dist)
    return list(parts)


def has_items(part: Any) -> bool:
    """Whether it is joined item by item: a list, a tuple, or an array that is no scalar."""
    return isinstance(part, list | tuple) or (_is_array(part) and part.ndim > 0)


def join_lists(parts: Sequence[Any], dist: str = "b") -> list[Any]:
    """One list of all items of the parts."""
    return _join_items(parts, dist)


def _join_items(parts: Sequence[Any], dist: str) -> list[Any]:
    total = sum(len(part) for part in parts)
    if dist == "r" and _is_dealt(parts, total):
        joined: list[Any] = [None] * total
        for start, part in enumerate(parts):
            joined[start :: len(parts)] = part
        return joined
    joined = []
    for part in parts:
        joined.extend(part)
    return joined


def _is_dealt(parts: Sequence[Any], total: int) -> bool:
    """Whether the lengths are those that dealing `total` items out gives; else they cannot be interleaved."""
    size, longer = divmod(total, len(parts))
    return all(len(part) == size + (i < longer) for i, part in enumerate(parts))


def _join_ranges(parts: Sequence[range], dist: str) -> range | list[int]:
    filled = [part for part in parts if part]
    if not filled:
        return range(0)
    first = filled[0]
    if len(filled) > 1 and (dist == "r" or len(first) == 1):
        step = filled[1][0] - first[0]
    else:
        step = first.step
    whole = range(first[0], first[0] + step * sum(map(len, filled)), step) if step else range(0)
    # Compared part by part, so a range of a billion items costs nothing; ranges of another origin become a list.
    return whole if partition(whole, len(parts), dist) == list(parts) else _join_items(parts, dist)


def _join_arrays(parts: Sequence[Any], dist: str) -> Any:
    import numpy as np

    if any(part.ndim == 0 for part in parts):
        return list(parts)
    total = sum(len(part) for part in parts)
    first = parts[0]
    # Where all have one type it stays as it is: numpy's promotion would make it native, and has no rule for some.
    dtype = first.dtype if all(part.dtype == first.dtype for part in parts) else np.result_type(*parts)
    if dist == "r" and len(parts) > 1 and _is_dealt(parts, total):
        joined = np.empty_like(first, dtype=dtype, shape=(total, *first.shape[1:]))
        for start, part in enumerate(parts):
            joined[start :: len(parts)] = part
        return joined
    if len(parts) == 1:
        return first
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        return np.ma.concatenate(parts).astype(dtype, copy=False)  # type: ignore[no-untyped-call]
    return np.concatenate(parts, dtype=dtype)


def _join_pandas(parts: Sequence[Any], dist: str) -> Any:
    import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]

    joined = pandas.concat(parts)
    if dist == "b" or not _is_dealt(parts, len(joined)):
        return joined
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    count = len(parts)
    return joined.iloc[[starts[i % count] + i // count for i in range(len(joined))]]


# numpy and pandas are looked at only if the program has imported them: without them there are no such objects.


def _is_array(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _all_arrays(parts: Sequence[Any]) -> bool:
    return all(_is_array(part) for part in parts)


def _is_pandas(obj: Any) -> bool:
    return _is_one_of_pandas(obj, "Series", "DataFrame")


def _is_index(obj: Any) -> bool:
    return _is_one_of_pandas(obj, "Index")


def _is_one_of_pandas(obj: Any, *names: str) -> bool:
    pandas = sys.modules.get("pandas")
    # getattr: another thread may be in the middle of importing it.
    return pandas is not None and isinstance(obj, tuple(k for n in names if (k := getattr(pandas, n, None))))


# ---------------------------------------------------------------- what map() cuts


def cut_for_map(sequences: Sequence[Any]) -> tuple[list[Any], int]:
    """The sequences of a map call as things that can be sliced, and how many items the map has.

    As with the builtin, the shortest one counts, and endless ones are fine beside one that ends.
    """
    if not sequences:
        raise TypeError("map() needs a function and at least one sequence")
    for seq in sequences:
        if not isinstance(seq, Iterable):
            raise TypeError(f"map() needs iterables, not {type(seq).__name__} {seq!r:.80}")
    sliceable = [
        seq if _is_map_sliceable(seq) else _as_list(seq) if isinstance(seq, Sized) else None for seq in sequences
    ]
    lengths = [len(seq) for seq in sliceable if seq is not None]
    if lengths:
        count = min(lengths)
        cut = [
            list(islice(seq, count)) if ready is None else ready
            for seq, ready in zip(sequences, sliceable, strict=True)
        ]
        return cut, min(count, *(len(seq) for seq in cut))
    rows = list(zip(*sequences, strict=False))
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in sequences], len(rows)


def _is_map_sliceable(seq: Any) -> bool:
    # Only types whose slices iterate as they do; iterating over a DataFrame gives columns, slicing it rows.
    return type(seq) in (list, tuple, str, bytes, range) or (_is_array(seq) and seq.ndim > 0)


def chunk_bounds(count: int, chunksize: int) -> list[tuple[int, int]]:
    """Where chunks of a load-balanced map start and stop."""
    return [(start, min(start + chunksize, count)) for start in range(0, count, chunksize)]


def block_bounds(count: int, parts: int) -> list[tuple[int, int]]:
    """Where the parts of a direct map start and stop; empty ones are left out."""
    return [(start, stop) for start, stop in _block_bounds(count, parts) if stop > start]
