"""``python -m hpcviews.testing.simulate``: how the scheduler does with many engines, in simulated time.

    python -m hpcviews.testing.simulate --engines 10000 --tasks 1000000 --seconds 1
    python -m hpcviews.testing.simulate --engines 32 --tasks 2000 --seconds 0.001 --long 20x10 --picture timeline.png

The controller's real core is driven by simulated engines (see simulation.py). Printed are the makespan beside what no
schedule can beat, the core's own time per event, and the memory of a task that waits.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from pathlib import Path

from hpcviews.testing.simulation import Outcome, Simulation, compute_greedy_makespan

ENGINES_DRAWN_MAX = 200


def main(argv: list[str]) -> int:
    """Run one scenario and report; the exit code is 1 if a task was lost."""
    arguments = _parse(argv)
    logging.getLogger("hpcviews").setLevel(logging.ERROR)  # every loss is a warning, and here they are wanted
    chance = random.Random(arguments.seed)
    durations = _make_durations(arguments, chance)
    speeds = [0.1 if chance.random() < arguments.stragglers else 1.0 for _ in range(arguments.engines)]
    began = time.perf_counter()
    simulation = Simulation(
        arguments.engines,
        speeds=speeds,
        check=arguments.check,
        keep_spans=bool(arguments.picture),
        set_size=arguments.engines + arguments.joins,
    )
    simulation.run()
    before = _read_rss()
    simulation.submit(durations, retries=arguments.retries)
    per_task = (_read_rss() - before) / max(1, len(durations))
    horizon = sum(durations) / sum(speeds)
    for _ in range(arguments.joins):
        simulation.at(simulation.now + chance.random() * horizon, simulation.join)
    for engine in chance.sample(list(simulation.engines.values()), min(arguments.losses, arguments.engines - 1)):
        simulation.at(simulation.now + chance.random() * horizon, simulation.lose, engine)
    simulation.run()
    outcome = simulation.get_outcome()
    greedy = compute_greedy_makespan(durations, speeds) if not arguments.joins + arguments.losses else None
    _report(outcome, greedy, per_task, time.perf_counter() - began)
    if arguments.picture:
        draw_timeline(simulation, arguments.picture)
        print(f"drawn: {arguments.picture}")
    if outcome.results != len(durations):
        print(f"LOST: {len(durations) - outcome.results} tasks have no result", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m hpcviews.testing.simulate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=0.1, help="mean run time of a task; exponential with --random")
    parser.add_argument("--random", action="store_true", help="run times vary")
    parser.add_argument("--long", default="", metavar="NxS", help="and N tasks of S seconds, anywhere among them")
    parser.add_argument("--stragglers", type=float, default=0.0, help="part of the engines that is ten times slower")
    parser.add_argument("--losses", type=int, default=0, help="engines that die at random moments")
    parser.add_argument("--joins", type=int, default=0, help="engines that come at random moments")
    parser.add_argument("--retries", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="assert all invariants after every event (slow)")
    parser.add_argument("--picture", type=Path, help="draw the engines' timeline into this PNG, PDF or SVG file")
    arguments = parser.parse_args(argv)
    if arguments.engines < 1 or arguments.tasks < 0 or arguments.seconds <= 0:
        parser.error("at least one engine, no negative number of tasks, and run times above 0 are needed")
    return arguments


def _make_durations(arguments: argparse.Namespace, chance: random.Random) -> list[float]:
    if arguments.random:
        durations = [chance.expovariate(1 / arguments.seconds) for _ in range(arguments.tasks)]
    else:
        durations = [arguments.seconds] * arguments.tasks
    if arguments.long:
        count, _, seconds = arguments.long.partition("x")
        durations += [float(seconds)] * int(count)
        chance.shuffle(durations)
    return durations


def _report(outcome: Outcome, greedy: float | None, per_task: float, took_s: float) -> None:
    bound = outcome.lower_bound_s
    print(f"tasks      {outcome.results:,} ended, {outcome.failures:,} failed, {outcome.attempts:,} attempts")
    print(f"makespan   {outcome.makespan_s:.6g} s = {outcome.makespan_s / bound if bound else 1:.4f} x the lower bound")
    if greedy:
        print(f"           {outcome.makespan_s / greedy:.4f} x list scheduling at no cost ({greedy:.6g} s)")
    print(f"recalled   {outcome.recalls:,} tasks")
    print(f"queue      {outcome.queue_max:,} tasks at most, {per_task:.0f} bytes each")
    print(f"core       {outcome.events:,} events, {1e6 * outcome.core_s / outcome.events:.2f} µs each")
    print(f"simulated  in {took_s:.1f} s")


def _read_rss() -> int:
    """Resident bytes of this process; the peak where the kernel does not say more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def draw_timeline(simulation: Simulation, path: Path) -> None:
    """Draw who ran what when, the first `ENGINES_DRAWN_MAX` engines from top to bottom.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit('a picture needs matplotlib: pip install "hpcviews[examples]"') from None
    spans = [span for span in simulation.spans if span.engine < ENGINES_DRAWN_MAX]
    rows = max((span.engine for span in spans), default=0) + 1
    figure = Figure(figsize=(11, min(9.0, 1.5 + 0.12 * rows)), layout="constrained")
    axes = figure.add_subplot()
    for is_lost, colour, label in ((False, "tab:blue", "task"), (True, "tab:red", "attempt lost with its engine")):
        chosen = [span for span in spans if span.is_lost is is_lost]
        if chosen:
            axes.barh(
                [span.engine for span in chosen],
                [span.ended - span.started for span in chosen],
                left=[span.started for span in chosen],
                height=0.9,
                color=colour,
                edgecolor="white",
                linewidth=0.2,
                label=label,
            )
    outcome = simulation.get_outcome()
    axes.axvline(outcome.lower_bound_s, color="black", linestyle=":", label="lower bound of the makespan")
    axes.set(xlabel="simulated seconds", ylabel="engine", ylim=(rows - 0.4, -0.6))
    axes.set_title(f"{outcome.results:,} tasks: makespan {outcome.makespan_s:.4g} s")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
