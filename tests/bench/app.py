"""Plans the runs, has each done by a child process, and prints the table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.environment import NoEnvironment, make_environment
from tests.bench.measures import GROUPS, MEASURES, OURS, POOL, REFERENCE, judge_all
from tests.bench.processes import MARK, end_all
from tests.bench.report import make_json, make_markdown, make_table

ROOT = Path(__file__).resolve().parents[2]

PEERS = (REFERENCE, POOL)

CHILD_S_MAX = 600.0
"""A child that takes longer hangs: the slowest, 64 engines of ipyparallel on 2 cores, needs two minutes."""

LEAVE_S_MAX = 10.0
"""How long after the end of a child its processes may still be about."""


@dataclass(frozen=True)
class Run:
    """What one child does."""

    system: str
    n: int
    groups: tuple[str, ...] = ()
    launcher: str = "local"

    def __str__(self) -> str:
        launcher = "" if self.launcher == "local" else f" --launcher {self.launcher}"
        return f"{self.system} n={self.n}{launcher} {' '.join(self.groups)}".rstrip()


def plan(groups: Sequence[str], peers: Sequence[str], quick: bool) -> list[Run]:
    """All runs in order: repetitions outermost, so that systems take turns and a slow spell hits them all."""
    warm = tuple(group for group in ("memory", "idle", "round_trip", "tasks", "bulk") if group in groups)
    systems = (OURS, *peers)
    runs: list[Run] = []
    for repetition in range(1 if quick else 3):
        runs += [Run(system, 4, warm) for system in systems]
        if "start" in groups:
            runs += [Run(system, 16) for system in systems]
            runs.append(Run(OURS, 4, launcher="mpiexec"))
        # Minutes each for ipyparallel, and steady: once is enough for it.
        if not quick and ("start" in groups or "memory" in groups):
            again = tuple(group for group in ("memory",) if group in groups)
            runs += [Run(system, 64, again) for system in systems if system == OURS or repetition == 0]
        if not quick and "start" in groups:
            runs.append(Run(OURS, 512))
            runs.append(Run(OURS, 64, launcher="mpiexec"))
    return runs


class Bench:
    """Does runs and keeps their figures."""

    def __init__(self, peer_python: Path | None, quick: bool, home: Path):
        self.peer_python = peer_python
        self.quick = quick
        self.home = home
        self.raw: dict[str, dict[str, list[float]]] = {}
        self.versions: dict[str, str] = {}
        self.failures: list[str] = []

    def do(self, run: Run) -> None:
        """Have a child do it. What goes wrong is noted, not raised: the other figures are still wanted."""
        token = secrets.token_hex(8)
        python = sys.executable if run.system == OURS or self.peer_python is None else str(self.peer_python)
        command = [python, "-m", "tests.bench.child", run.system, *run.groups]
        command += ["--n", str(run.n), "--launcher", run.launcher, "--token", token]
        command += ["--quick"] if self.quick else []
        # Nobody's own profiles and clusters are touched.
        environment = {
            **os.environ,
            MARK: token,
            "HPCVIEWS_HOME": str(self.home / "hpcviews"),
            "IPYTHONDIR": str(self.home / "ipython"),
        }
        (self.home / "hpcviews").mkdir(mode=0o700, exist_ok=True)
        errors = self.home / "errors.txt"
        begun = time.monotonic()
        with errors.open("w") as sink:
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=sink, text=True)
            try:
                out, _ = child.communicate(timeout=CHILD_S_MAX)
                problem = f"exit code {child.returncode}" if child.returncode else ""
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGTERM)
                problem, out = f"nothing after {CHILD_S_MAX:g} s", ""
            finally:
                killed = end_all(token, LEAVE_S_MAX if child.poll() is not None else 0)
                child.wait()
        for line in out.splitlines():
            self._keep(run.system, json.loads(line))
        if problem:
            self.failures.append(f"{run}: {problem}\n{errors.read_text()[-1500:].rstrip()}")
        if killed:
            self.failures.append(f"{run}: left {killed} processes behind, which were killed")
        print(f"  {run}: {time.monotonic() - begun:.1f} s {problem}".rstrip(), file=sys.stderr, flush=True)

    def _keep(self, system: str, figure: dict[str, Any]) -> None:
        if figure["measure"] == "version":
            self.versions[system] = figure["value"]
        else:
            self.raw.setdefault(system, {}).setdefault(figure["measure"], []).append(figure["value"])

    def medians(self) -> dict[str, dict[str, float]]:
        """What the table shows."""
        return {
            system: {measure: statistics.median(values) for measure, values in figures.items()}
            for system, figures in self.raw.items()
        }


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure hpcviews and its peers side by side."
    )
    parser.add_argument("--quick", action="store_true", help="once, with few samples and few engines")
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="NAME",
        help=f"of {', '.join(GROUPS)}; may be repeated",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated, or none [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown too")
    options = parser.parse_args(arguments)
    options.peers = () if options.peers == "none" else tuple(options.peers.split(","))
    for peer in options.peers:
        if peer not in PEERS:
            parser.error(f"unknown peer {peer!r}; known are {', '.join(PEERS)} and none")
    return options


def main(arguments: list[str]) -> int:
    """Run the bench. 0: all runs worked (whether aims are met is in the table), 1: some did not."""
    options = parse_arguments(arguments)
    try:
        peer_python = make_environment() if REFERENCE in options.peers else None
    except NoEnvironment as error:
        print(error, file=sys.stderr)
        return 1
    begun = time.monotonic()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hpcviews-bench-") as home:
        bench = Bench(peer_python, options.quick, Path(home))
        for run in plan(options.only or GROUPS, options.peers, options.quick):
            bench.do(run)
    groups = set(options.only or GROUPS)
    chosen = {measure.name for measure in MEASURES if measure.group in groups}
    rows = [row for row in judge_all(bench.medians(), options.peers) if row.measure.name in chosen]
    cores = len(os.sched_getaffinity(0))
    about = {
        "date": datetime.date.today().isoformat(),
        "cores": cores,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": bench.versions,
        "quick": options.quick,
        "load_before": load_before,
        "took_s": round(time.monotonic() - begun, 1),
        "failures": bench.failures,
    }
    versions = ", ".join(f"{system} {version}" for system, version in bench.versions.items())
    title = f"{about['date']}, {cores} cores, {versions}"
    Console(width=None if sys.stdout.isatty() else 160).print(make_table(rows, options.peers, title))
    if options.markdown:
        print(f"\n{title}\n\n{make_markdown(rows, options.peers)}")
    if options.json:
        options.json.write_text(json.dumps(make_json(rows, bench.raw, about), indent=1) + "\n")
    if load_before > cores / 4:
        print(f"the machine was busy (load {load_before:.1f}): do not quote these figures", file=sys.stderr)
    for failure in bench.failures:
        print(failure, file=sys.stderr)
    return 1 if bench.failures else 0
