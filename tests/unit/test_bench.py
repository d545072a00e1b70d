"""The bench's verdicts: a wrong one would make us claim what is not so."""

from __future__ import annotations

from tests.bench.app import plan
from tests.bench.measures import GROUPS, MEASURES, OURS, POOL, REFERENCE, Measure, judge
from tests.bench.report import render_cells

PEERS = (REFERENCE, POOL)

BY_NAME = {measure.name: measure for measure in MEASURES}


def judge_one(measure: Measure, ours: float, **theirs: float):
    row = judge(measure, {OURS: {measure.name: ours}, **{k: {measure.name: v} for k, v in theirs.items()}}, PEERS)
    assert row is not None
    return row


def test_less_time_is_better_and_more_tasks_are_better() -> None:
    assert judge_one(BY_NAME["push"], 1.0, ipyparallel=6.0).ratios == {REFERENCE: 6.0}
    assert judge_one(BY_NAME["tasks_per_s"], 30_000, ipyparallel=500).ratios == {REFERENCE: 60.0}


def test_each_aim_is_judged_by_itself() -> None:
    row = judge_one(BY_NAME["direct_p50"], 0.3e-3, ipyparallel=2e-3, process_pool=0.1e-3)
    assert row.aims == ("≤ 2 × pool", "5 × ipp")
    assert row.missed == ("≤ 2 × pool",)
    assert row.met is False
    assert judge_one(BY_NAME["direct_p50"], 0.2e-3, ipyparallel=2e-3, process_pool=0.1e-3).met is True


def test_bounds_hold_in_the_right_direction() -> None:
    assert judge_one(BY_NAME["tasks_per_s"], 19_999).met is False
    assert judge_one(BY_NAME["tasks_per_s"], 20_000).met is True
    assert judge_one(BY_NAME["start_4"], 0.7).met is True
    assert judge_one(BY_NAME["start_4"], 0.71).met is False


def test_a_figure_of_ours_that_is_missing_is_not_met() -> None:
    row = judge(BY_NAME["start_4"], {REFERENCE: {"start_4": 6.0}}, PEERS)
    assert row is not None and row.met is False
    assert render_cells(row, PEERS)[-1] == "NOT met: a figure"


def test_figures_are_rendered_with_a_readable_unit() -> None:
    assert BY_NAME["start_4"].render(0.0123) == "12.3 ms"
    assert BY_NAME["start_4"].render(1.234) == "1.23 s"
    assert BY_NAME["direct_p50"].render(87e-6) == "87 µs"
    assert BY_NAME["tasks_per_s"].render(123_456) == "123,000/s"


def test_systems_take_turns() -> None:
    warm = [run.system for run in plan(("round_trip",), PEERS, quick=False) if run.groups]
    assert warm == [OURS, REFERENCE, POOL] * 3


def test_every_group_is_planned_and_has_a_measure() -> None:
    planned = {group for run in plan(GROUPS, PEERS, quick=False) for group in run.groups}
    assert planned | {"start"} == {measure.group for measure in MEASURES} == set(GROUPS)
