"""The table of measures, the aims, and how a set of figures stands against them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OURS = "hpcviews"
REFERENCE = "ipyparallel"
POOL = "process_pool"

REFERENCE_FACTOR = 5.0
"""Every figure is to be this many times better than ipyparallel's in the same run."""

Figures = Mapping[str, Mapping[str, float]]
"""system -> measure -> median."""


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    title: str
    unit: str
    """s, /s, MB or %."""
    group: str
    """What --only takes."""
    more_is_better: bool = False
    bound: float | None = None
    """Our figure is to be at most (at least) this, in the unit."""
    pool_factor: float | None = None
    """Our figure is to be at most this many times the pool's."""

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better ours is; below 1, worse."""
        better, worse = (ours, theirs) if self.more_is_better else (theirs, ours)
        return better / worse if worse else float("inf")

    def render(self, value: float) -> str:
        """A figure with its unit, three digits."""
        if self.unit == "s":
            for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
                if value * factor >= 1 or unit == "µs":
                    return f"{value * factor:.3g} {unit}"
        if self.unit == "/s":
            return f"{float(f'{value:.3g}'):,.0f}/s"
        return f"{value:.3g} {self.unit}"


MEASURES = (
    Measure("direct_p50", "round trip, direct, p50", "s", "round_trip", pool_factor=2),
    Measure("direct_p99", "round trip, direct, p99", "s", "round_trip"),
    Measure("balanced_p50", "round trip, balanced, p50", "s", "round_trip", pool_factor=2),
    Measure("balanced_p99", "round trip, balanced, p99", "s", "round_trip"),
    Measure("tasks_per_s", "no-op tasks, 4 engines", "/s", "tasks", more_is_better=True, bound=20_000),
    Measure("controller_cpu_per_task", "controller's CPU per task", "s", "tasks"),
    Measure("push", "push 256 MB to 4 engines", "s", "bulk"),
    Measure("scatter", "scatter 256 MB over 4", "s", "bulk"),
    Measure("gather", "gather 256 MB from 4", "s", "bulk"),
    Measure("start_4", "start 4 engines", "s", "start", bound=0.7),
    Measure("start_16", "start 16 engines", "s", "start"),
    Measure("start_64", "start 64 engines", "s", "start", bound=1.5),
    Measure("start_512", "start 512 engines", "s", "start", bound=6),
    Measure("start_mpiexec_4", "start 4 MPI ranks", "s", "start"),
    Measure("start_mpiexec_64", "start 64 MPI ranks", "s", "start", bound=10),
    Measure("stop_4", "stop 4 engines", "s", "start"),
    Measure("stop_64", "stop 64 engines", "s", "start"),
    Measure("engine_pss_4", "memory per engine, 4", "MB", "memory"),
    Measure("engine_pss_64", "memory per engine, 64", "MB", "memory", bound=10),
    Measure("total_pss_4", "all memory / engines, 4", "MB", "memory"),
    Measure("total_pss_64", "all memory / engines, 64", "MB", "memory"),
    Measure("idle_cpu", "CPU while idle, 4 engines", "% core", "idle"),
)

GROUPS = tuple(dict.fromkeys(measure.group for measure in MEASURES))


@dataclass(frozen=True)
class Row:
    """A measure with its figures. `ratios` and `peers` by peer; absent where the peer has no such thing."""

    measure: Measure
    ours: float | None
    peers: Mapping[str, float]
    ratios: Mapping[str, float]
    aims: tuple[str, ...]
    missed: tuple[str, ...]
    """Those of the aims that are not met."""

    @property
    def met(self) -> bool | None:
        """Whether all aims are met; None when there is nothing to judge."""
        return not self.missed if self.aims else None


def judge(measure: Measure, figures: Figures, peers: tuple[str, ...]) -> Row | None:
    """The row of `measure`, or None when no system has a figure for it."""
    ours = figures.get(OURS, {}).get(measure.name)
    theirs = {peer: figures[peer][measure.name] for peer in peers if measure.name in figures.get(peer, {})}
    if ours is None:
        return Row(measure, None, theirs, {}, ("a figure",), ("a figure",)) if theirs else None
    ratios = {peer: measure.ratio(ours, value) for peer, value in theirs.items()}
    aims: list[tuple[str, bool]] = []
    if measure.bound is not None:
        sign = "≥" if measure.more_is_better else "≤"
        met = ours >= measure.bound if measure.more_is_better else ours <= measure.bound
        aims.append((f"{sign} {measure.render(measure.bound)}", met))
    if measure.pool_factor is not None and POOL in ratios:
        aims.append((f"≤ {measure.pool_factor:g} × pool", ratios[POOL] >= 1 / measure.pool_factor))
    if REFERENCE in ratios:
        aims.append((f"{REFERENCE_FACTOR:g} × ipp", ratios[REFERENCE] >= REFERENCE_FACTOR))
    return Row(
        measure,
        ours,
        theirs,
        ratios,
        tuple(text for text, _ in aims),
        tuple(text for text, met in aims if not met),
    )


def judge_all(figures: Figures, peers: tuple[str, ...]) -> list[Row]:
    """All rows that have a figure."""
    rows = (judge(measure, figures, peers) for measure in MEASURES)
    return [row for row in rows if row is not None]
