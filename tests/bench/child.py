"""One run of one system, in its own process: ``python -m tests.bench.child SYSTEM GROUP… --n 4 --token T``.

Prints one JSON line per figure: ``{"measure": "start_4", "value": 0.51}``. Runs in the peers' environment
too, so it needs no more than the standard library and numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bench.processes import find_marked, read_cpu_s, read_pss_mb, select_by_command
from tests.bench.system import System

BULK_FLOATS = 32 * 2**20
"""256 MB of float64 (binary megabytes, as the other published figures have it)."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    round_trips: int
    tasks_s_min: float
    """A throughput is taken from a run that lasts at least this long."""
    bulk_rounds: int
    idle_s: float


FULL = Effort(round_trips=2000, tasks_s_min=1.5, bulk_rounds=3, idle_s=5.0)
QUICK = Effort(round_trips=300, tasks_s_min=0.5, bulk_rounds=1, idle_s=1.5)

TASKS_MAX = 200_000

Report = Callable[[str, "float | str"], None]


def noop(x: Any) -> Any:
    """The task: nothing."""
    return x


def measure_round_trips(system: System, effort: Effort, report: Report) -> None:
    """One call, waited for, then the next."""
    for kind, call in (("direct", system.call_one), ("balanced", system.call_any)):
        for i in range(50):
            call(noop, i)
        times = []
        for i in range(effort.round_trips):
            begun = time.perf_counter()
            answer = call(noop, i)
            times.append(time.perf_counter() - begun)
            assert answer == i
        times.sort()
        report(f"{kind}_p50", times[len(times) // 2])
        report(f"{kind}_p99", times[len(times) * 99 // 100])


def measure_tasks(system: System, effort: Effort, report: Report, token: str) -> None:
    """No-op tasks a second, and what each costs the controller."""
    word = system.controller_word
    controllers = select_by_command(find_marked(token), word) if word else []
    n = 250
    while True:
        cpu_before = read_cpu_s(controllers)
        begun = time.perf_counter()
        results = system.map_tasks(noop, range(n))
        took_s = time.perf_counter() - begun
        assert results == list(range(n))
        if took_s >= effort.tasks_s_min or n >= TASKS_MAX:
            break
        # Aim a quarter above the limit, but do not trust a short run for more than a tenfold step.
        n = min(TASKS_MAX, 10 * n, max(2 * n, int(1.25 * n * effort.tasks_s_min / took_s)))
    report("tasks_per_s", n / took_s)
    if controllers:
        report("controller_cpu_per_task", (read_cpu_s(controllers) - cpu_before) / n)


def measure_bulk(system: System, effort: Effort, report: Report) -> None:
    """256 MB to all engines, in parts to the engines, and back."""
    import numpy as np

    rng = np.random.default_rng(7)
    times: dict[str, list[float]] = {"push": [], "scatter": [], "gather": []}
    # One round more than counted: the first pays for memory that the operating system has to find and clear, which
    # on a virtual machine takes longer than the transfer.
    for _ in range(1 + effort.bulk_rounds):
        array = rng.random(BULK_FLOATS)
        for name, do in (("push", system.push), ("scatter", system.scatter)):
            begun = time.perf_counter()
            do(array)
            times[name].append(time.perf_counter() - begun)
        assert set(system.last_pushed()) == {float(array[-1])}
        begun = time.perf_counter()
        joined = system.gather()
        times["gather"].append(time.perf_counter() - begun)
        assert joined.shape == array.shape
        if system.controller_word:  # the pool's workers cannot keep what they got
            assert np.array_equal(joined, array)
        del joined
    for name, values in times.items():
        report(name, statistics.median(values[1:]))


def measure_idle(system: System, effort: Effort, report: Report, token: str) -> None:
    """What the cluster burns while nobody asks for anything, in percent of one core."""
    pids = find_marked(token)
    cpu_before = read_cpu_s(pids)
    time.sleep(effort.idle_s)
    report("idle_cpu", 100 * (read_cpu_s(pids) - cpu_before) / effort.idle_s)


def measure_memory(system: System, n: int, report: Report, token: str) -> None:
    """Memory of an engine, and of everything except this process, divided by the engines."""
    engines = system.worker_pids()
    report(f"engine_pss_{n}", statistics.fmean(map(read_pss_mb, engines)))
    everything = [pid for pid in find_marked(token) if pid != os.getpid()]
    report(f"total_pss_{n}", sum(map(read_pss_mb, everything)) / n)


def make_system(name: str, launcher: str) -> System:
    """The system of that name; imports it and no other."""
    if name == "process_pool":
        from tests.bench.with_process_pool import ProcessPool

        return ProcessPool()
    from tests.bench.with_views import Hpcviews, Ipyparallel

    return Ipyparallel() if name == "ipyparallel" else Hpcviews(launcher)


def main(arguments: list[str]) -> None:
    """Start the system, measure the groups asked for, stop it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=["hpcviews", "ipyparallel", "process_pool"])
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--launcher", default="local")
    parser.add_argument("--token", required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL

    # Systems print to stdout as they like (and their children inherit it), so figures go to a copy of it.
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def report(measure: str, value: float | str) -> None:
        print(json.dumps({"measure": measure, "value": value}), file=figures, flush=True)

    system = make_system(options.system, options.launcher)
    report("version", system.version())
    begun = time.perf_counter()
    system.start(options.n)
    kind = "" if options.launcher == "local" else f"{options.launcher}_"
    report(f"start_{kind}{options.n}", time.perf_counter() - begun)
    try:
        for group in options.groups:
            if group == "memory":
                measure_memory(system, options.n, report, options.token)
            elif group == "idle":
                measure_idle(system, effort, report, options.token)
            elif group == "round_trip":
                measure_round_trips(system, effort, report)
            elif group == "tasks":
                measure_tasks(system, effort, report, options.token)
            elif group == "bulk":
                measure_bulk(system, effort, report)
            else:
                raise SystemExit(f"unknown group {group!r}")
    finally:
        begun = time.perf_counter()
        system.stop()
        report(f"stop_{kind}{options.n}", time.perf_counter() - begun)


if __name__ == "__main__":
    main(sys.argv[1:])
