"""Queries over records of requests, as those of ipyparallel (and of MongoDB, where they come from).

A query is a dict: of keys of a record, and what each must be. All must hold. What it must be is a value, or a dict of
operators and operands, which must all hold too: ``{"engine_id": {"$in": [0, 1]}, "completed": {"$gt": t, "$lt": u}}``.

A value that a record does not have (the engine of a task that waits, the error of one that ended well) is None. None
equals None; it is neither less nor greater than anything, and matches no pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import translate
from typing import Any

from hpcviews.errors import UsageError

NUMBER, TEXT = "a number", "a text"

KEYS: Mapping[str, str] = {
    "msg_id": TEXT,
    "client_uuid": TEXT,
    "submitted": NUMBER,
    "started": NUMBER,
    "completed": NUMBER,
    "engine_id": NUMBER,
    "engine_uuid": TEXT,
    "queue": TEXT,
    "op": TEXT,
    "label": TEXT,
    "status": TEXT,
    "error": TEXT,
    "stdout": TEXT,
    "stderr": TEXT,
    "nbytes": NUMBER,
}
"""The keys of a record, and what their values are where there are any."""

Test = Callable[[Any], bool]


def _is_in(operand: Any) -> Test:
    return lambda value: value in operand


def _is_not_in(operand: Any) -> Test:
    return lambda value: value not in operand


def _matches(operand: Any) -> Test:
    find = re.compile(translate(operand)).match
    return lambda value: value is not None and find(value) is not None


OPERATORS: Mapping[str, Callable[[Any], Test]] = {
    "$in": _is_in,
    "$nin": _is_not_in,
    "$eq": lambda operand: lambda value: bool(value == operand),
    "$ne": lambda operand: lambda value: bool(value != operand),
    "$gt": lambda operand: lambda value: value is not None and value > operand,
    "$gte": lambda operand: lambda value: value is not None and value >= operand,
    "$lt": lambda operand: lambda value: value is not None and value < operand,
    "$lte": lambda operand: lambda value: value is not None and value <= operand,
    "$le": lambda operand: lambda value: value is not None and value <= operand,
    "$glob": _matches,
}
"""``$le`` is another name of ``$lte``, which ipyparallel's documentation uses."""

_ORDERINGS = frozenset({"$gt", "$gte", "$lt", "$lte", "$le"})


class RecordFilter:
    """A query, checked and ready."""

    def __init__(self, query: Mapping[str, Any]):
        """Check a query.

        Raises:
            UsageError: It cannot be; the message says what can.
        """
        self.query = query
        self._tests: list[tuple[str, Test]] = []
        for key, wanted in query.items():
            check_key(key)
            conditions = wanted if isinstance(wanted, Mapping) else {"$eq": wanted}
            for operator, operand in conditions.items():
                if operator not in OPERATORS:
                    raise UsageError(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
                _check_operand(key, operator, operand)
                self._tests.append((key, OPERATORS[operator](operand)))

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is asked for."""
        return all(test(record[key]) for key, test in self._tests)


def check_key(key: str) -> None:
    """Raise UsageError unless records have this key."""
    if key not in KEYS:
        raise UsageError(f"records have no {key!r}; they have {', '.join(KEYS)}")


def _check_operand(key: str, operator: str, operand: Any) -> None:
    if operator in ("$in", "$nin"):
        if not isinstance(operand, list | tuple):
            raise UsageError(f"{operator} wants a list, not {operand!r}")
        operands = list(operand)
    else:
        operands = [operand]
    kind = KEYS[key]
    if operator == "$glob" and not (kind == TEXT and isinstance(operand, str)):
        raise UsageError(f"$glob wants a pattern, and a key whose values are texts; not {operand!r} for {key!r}")
    for value in operands:
        if value is None and operator not in _ORDERINGS:
            continue
        fits = isinstance(value, str) if kind == TEXT else isinstance(value, int | float)
        if not fits:
            raise UsageError(f"{key!r} is {kind} in records, so {operator} cannot compare it with {value!r}")
