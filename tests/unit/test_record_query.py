"""Operators of record queries, against a naive reference."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcviews.controller.record_query import KEYS, NUMBER, OPERATORS, RecordFilter
from hpcviews.errors import UsageError

NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 1.0, 2.5]))
TEXTS = st.text("ab*?[]!-", max_size=4)


def naive(operator: str, value: Any, operand: Any) -> bool:
    """What the docstring of record_query says, word for word."""
    if operator == "$eq":
        return bool(value == operand)
    if operator == "$ne":
        return not naive("$eq", value, operand)
    if operator == "$in":
        return any(value == one for one in operand)
    if operator == "$nin":
        return not any(value == one for one in operand)
    if value is None:
        return False
    if operator == "$glob":
        return fnmatch.fnmatchcase(value, operand)
    less, same = bool(value < operand), bool(value == operand)
    return {"$lt": less, "$le": less or same, "$lte": less or same, "$gt": not (less or same), "$gte": not less}[
        operator
    ]


@st.composite
def make_case(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    record: dict[str, Any] = {}
    query: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, max_size=3)):
        values = NUMBERS if KEYS[key] == NUMBER else TEXTS
        maybe = st.one_of(values, st.none())
        record[key] = draw(maybe)
        conditions = {}
        for operator in draw(st.lists(st.sampled_from(sorted(OPERATORS)), unique=True, max_size=2)):
            if operator in ("$in", "$nin"):
                conditions[operator] = draw(st.lists(maybe, max_size=3))
            elif operator == "$glob":
                if KEYS[key] != NUMBER:
                    conditions[operator] = draw(values)
            else:
                conditions[operator] = draw(maybe if operator in ("$eq", "$ne") else values)
        query[key] = conditions if draw(st.booleans()) or not conditions else draw(maybe)
    return record, query


@given(make_case())
def test_operators_are_what_the_naive_reference_says(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    record, query = case
    expected = all(
        all(naive(operator, record[key], operand) for operator, operand in wanted.items())
        if isinstance(wanted, dict)
        else naive("$eq", record[key], wanted)
        for key, wanted in query.items()
    )
    assert RecordFilter(query).matches(record) == expected


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"nope": 1}, "records have no 'nope'; they have msg_id, client_uuid, "),
        ({"engine_id": {"$like": 1}}, "no operator '$like'; there are $in, $nin, "),
        ({"engine_id": "0"}, "'engine_id' is a number in records"),
        ({"status": {"$in": ["ok", 3]}}, "'status' is a text in records"),
        ({"status": {"$nin": "ok"}}, "$nin wants a list"),
        ({"engine_id": {"$gt": None}}, "so $gt cannot compare it with None"),
        ({"label": {"$glob": 3}}, "$glob wants a pattern"),
    ],
)
def test_queries_that_cannot_be(query: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        RecordFilter(query)
