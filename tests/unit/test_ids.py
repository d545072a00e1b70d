"""msg_ids as text, one by one and in runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcviews.ids import Session, make_session, parse_msg_id, parse_msg_id_run, render_msg_id, render_msg_id_runs

A, B = "a" * 16, "b" * 16


def test_msg_ids_come_back_as_they_went() -> None:
    session = make_session()
    assert parse_msg_id(render_msg_id(session, 42)) == (session, 42)


def test_consecutive_msg_ids_are_one_text() -> None:
    assert render_msg_id_runs([f"{A}-{i}" for i in range(10_000)]) == [f"{A}-0..9999"]
    assert render_msg_id_runs([f"{B}-3", f"{A}-7", f"{A}-5", f"{A}-6", "nope", f"{A}-5"]) == [
        f"{A}-5..7", f"{B}-3", "nope"
    ]  # fmt: skip


@given(st.sets(st.tuples(st.sampled_from([A, B]), st.integers(0, 30))))
def test_runs_stand_for_exactly_what_they_were_made_of(wanted: set[tuple[str, int]]) -> None:
    runs = render_msg_id_runs(f"{session}-{seq}" for session, seq in wanted)
    parsed = [(session, seq) for session, seqs in map(parse_msg_id_run, runs) for seq in seqs]
    assert set(parsed) == wanted and len(parsed) == len(wanted)


@pytest.mark.parametrize("text", ["", "nope", A, f"{A}-", f"{A}-x", f"{A}-3..2", f"{A}-3..", f"{A}-3..x", "a-1"])
def test_what_is_no_msg_id_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_msg_id_run(text)


def test_one_msg_id_is_a_run() -> None:
    assert parse_msg_id_run(f"{A}-5") == (Session(A), range(5, 6))
