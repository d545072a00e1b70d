"""The targets grammar: which engines a call is for, and whether it asks one engine or several."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hpcviews.errors import NoEnginesRegistered, NoSuchEngine
from hpcviews.ids import EngineId

IDS_SHOWN_MAX = 20
"""How many engine ids an error message lists; more would hide its point."""


class Targets(NamedTuple):
    """Resolved targets."""

    ids: list[EngineId]
    """In the order the results will have."""
    is_single: bool
    """Asked for by one integer: the result is a value, not a list of values."""


def parse_targets(targets: Any, ids: Sequence[EngineId]) -> Targets:
    """Which of the engines `ids` (ascending) are meant.

    Args:
        targets: None or "all": every engine. An integer of any kind: that id, or if negative a position from
            the end of `ids`. A slice: positions in `ids`. Any iterable of integers: those ids, in its order.
        ids: The engines that are there.
    Raises:
        NoEnginesRegistered: There are no engines at all.
        NoSuchEngine: One of them is not there.
        TypeError: Not targets.
    """
    if isinstance(targets, str):
        if targets.lower() != "all":
            raise TypeError(f"{targets!r} not valid str target, must be 'all'")
        targets = None
    if not ids:
        raise NoEnginesRegistered(
            "This operation requires engines, and there are none. "
            "Try client.wait_for_engines(n) to wait for engines to register."
        )
    if targets is None:
        return Targets(list(ids), False)
    if isinstance(targets, slice):
        return Targets(list(ids[targets]), False)
    number = _find_integer(targets)
    if number is not None:
        return Targets([_pick(number, ids)], True)
    if not isinstance(targets, Iterable) or isinstance(targets, bytes | bytearray | memoryview):
        raise _not_targets(targets)
    wanted = [_find_integer(item) for item in targets]
    if None in wanted:
        raise _not_targets(targets)
    chosen = [EngineId(item) for item in wanted if item is not None]
    if isinstance(targets, set | frozenset):
        chosen.sort()  # a set has no order of its own that a result could follow
    missing = set(chosen).difference(ids)
    if missing:
        raise _no_such(min(missing), ids)
    return Targets(chosen, False)


def freeze_targets(targets: Any, ids: Sequence[EngineId]) -> Any:
    """Targets as a view keeps them: an int, a list of ids, or "all" for the engines at the time of each call."""
    if targets is None or (isinstance(targets, str) and targets.lower() == "all"):
        return "all"
    parsed = parse_targets(targets, ids)
    return int(parsed.ids[0]) if parsed.is_single else parsed.ids


def _find_integer(item: Any) -> int | None:
    try:
        return operator.index(item)
    except TypeError:
        return None


def _pick(number: int, ids: Sequence[EngineId]) -> EngineId:
    if number < 0:
        if -number > len(ids):
            raise NoSuchEngine(f"no engine at position {number}: there are {len(ids)} ({_render_ids(ids)})")
        return ids[number]
    where = bisect_left(ids, number)  # not `in`: there may be ten thousand
    if where == len(ids) or ids[where] != number:
        raise _no_such(number, ids)
    return EngineId(number)


def _no_such(number: int, ids: Sequence[EngineId]) -> NoSuchEngine:
    return NoSuchEngine(f"No such engine: {number}; engines now: {_render_ids(ids)}")


def _render_ids(ids: Sequence[EngineId]) -> str:
    shown = ", ".join(str(i) for i in ids[:IDS_SHOWN_MAX])
    rest = len(ids) - IDS_SHOWN_MAX
    return f"[{shown}, … {rest} more]" if rest > 0 else f"[{shown}]"


def _not_targets(targets: Any) -> TypeError:
    return TypeError(
        f"targets must be an int, a slice, an iterable of ints, 'all' or None, not {type(targets).__name__} {targets!r}"
    )
