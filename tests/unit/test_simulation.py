"""The scheduler in simulated time: a thousand seeded scenarios, and how near it comes to the best schedule."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from hpcviews.testing.simulate import main
from hpcviews.testing.simulation import NETWORK_S, Simulation, compute_greedy_makespan, run_random_scenario


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "hpcviews")


@pytest.mark.parametrize("hundred", range(10))
def test_every_task_ends_once_in_a_thousand_scenarios(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        run_random_scenario(seed, engines_max=8, tasks_max=40)


def test_short_and_long_tasks_in_one_map_end_like_list_scheduling() -> None:
    durations = [0.001] * 2000 + [10.0] * 20
    random.Random(1).shuffle(durations)
    simulation = Simulation(8)
    simulation.submit(durations)
    simulation.run()
    assert simulation.get_outcome().makespan_s <= 1.1 * compute_greedy_makespan(durations, [1.0] * 8)


def test_no_engine_idles_while_another_has_two_tasks() -> None:
    simulation = Simulation(4, keep_spans=True)
    simulation.submit([1.0] * 8 + [3.0])
    simulation.run()
    assert simulation.get_outcome().makespan_s < 5.0 + 0.02  # two rounds, and the straggler


def test_ten_millisecond_tasks_are_placed_without_loss() -> None:
    simulation = Simulation(4)
    simulation.submit([0.01] * 4000)
    simulation.run()
    outcome = simulation.get_outcome()
    assert outcome.makespan_s < outcome.lower_bound_s / 0.98


def test_engine_that_joins_gets_work_at_once() -> None:
    simulation = Simulation(1, keep_spans=True, set_size=2)
    simulation.submit([1.0] * 10)
    simulation.run(until=3.5)
    newcomer = simulation.join()
    simulation.run()
    first = min(span.started for span in simulation.spans if span.engine == newcomer.index)
    assert first < 3.5 + 4 * NETWORK_S


def test_core_needs_no_more_for_many_engines() -> None:
    """Counted in function calls, which are the same on every machine."""
    import cProfile
    import pstats

    def count_calls(engines: int) -> float:
        simulation = Simulation(engines)
        profile = cProfile.Profile()
        profile.enable()
        simulation.submit([1.0] * 4000)
        simulation.run()
        profile.disable()
        return int(pstats.Stats(profile).total_calls) / 4000  # type: ignore[attr-defined]

    assert count_calls(2000) < 1.3 * count_calls(10)


def test_simulator_reports_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "timeline.png"
    argv = ["--engines", "8", "--tasks", "60", "--seconds", "0.1", "--random", "--long", "3x2", "--losses", "2"]
    assert main([*argv, "--joins", "1", "--stragglers", "0.2", "--check", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "63 ended" in out and "lower bound" in out and "µs each" in out
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
