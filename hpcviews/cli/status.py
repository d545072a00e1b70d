"""``hpcviews status`` and ``hpcviews list``: what runs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from hpcviews import records
from hpcviews.cli import exit_codes
from hpcviews.cli.table import render_columns
from hpcviews.cluster.batch import JobState, JobStatus
from hpcviews.cluster.jobs import JobFile, ask_about, find_job_file
from hpcviews.cluster.plugins import get_scheduler
from hpcviews.errors import ConnectError, NoCluster
from hpcviews.records import Found, Liveness

if TYPE_CHECKING:
    from hpcviews.wire import messages as m

ANSWER_S = 10.0
"""A controller answers in milliseconds; one that does not in this time is stopped or swapped out."""


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool) -> int:
    """Show a cluster's controller and engines.

    NAME may be left out when there is only one.
    """
    found = records.choose_cluster(name)
    described, error = describe_cluster(found)
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        click.echo(render_status(described))
    if error is None:
        return exit_codes.OK
    if not as_json:
        click.echo(f"hpcviews: {error}", err=True)
    return exit_codes.get_exit_code(error)


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List your clusters, those on other hosts and dead ones too."""
    found = records.list_clusters()
    jobs = ask_about({one.record.name: one.place for one in found}, get_scheduler) if found else {}
    described = [describe_found(one, jobs.get(one.record.name)) for one in found]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    if not described:
        click.echo("no cluster is running; start one with `hpcviews start --n 4`", err=True)
        return
    head = ("NAME", "STATE", "ENGINES", "LAUNCHER", "HOST", "PID", "STARTED", "DIRECTORY")
    rows = [
        (d["name"], d["state"], d["n"], d["launcher"], d["host"], d["pid"], render_time(d["started"]), d["cwd"])
        for d in described
    ]
    click.echo(render_columns(head, rows))
    for d in described:
        if d["state"] == Liveness.DEAD.value:
            click.echo(f"{d['name']} is dead; `hpcviews stop {d['name']}` clears it away", err=True)


def describe_found(found: Found, job: JobStatus | None) -> dict[str, Any]:
    """An entry of ``list --json``."""
    record = found.record
    file = find_job_file(found.place)
    return {
        "name": record.name,
        "state": _choose_state(found.liveness, job),
        "job": describe_job(file, job),
        "n": record.n,
        "launcher": record.launcher,
        "host": record.host,
        "pid": record.pid,
        "started": record.started,
        "cwd": record.cwd,
    }


def _choose_state(liveness: Liveness, job: JobStatus | None) -> str:
    """What is seen from here, and what the batch system knows beyond it."""
    if job is not None and job.has_ended:
        return Liveness.DEAD.value
    if job is not None and job.state is JobState.RUNNING and liveness is Liveness.ELSEWHERE:
        return Liveness.RUNNING.value
    return liveness.value


def describe_job(file: JobFile | None, status: JobStatus | None) -> dict[str, Any] | None:
    """The job of a cluster for ``--json``; None when it is in none that we submitted."""
    if file is None:
        return None
    described: dict[str, Any] = {"id": file.id, "scheduler": file.scheduler, "state": "unknown", "says": ""}
    if status is not None:
        described.update(state=status.state.value, says=status.render())
    return described


def describe_cluster(found: Found) -> tuple[dict[str, Any], Exception | None]:
    """``status --json``, and why the controller could not be asked if it could not."""
    from hpcviews.client.client import Client

    record = found.record
    file = find_job_file(found.place)
    # A controller in a job is asked only if the job is there: else that takes until the timeout.
    job = ask_about({record.name: found.place}, get_scheduler).get(record.name)
    try:
        if job is not None and job.has_ended:
            raise NoCluster(
                f"its job is over: {job.render()}; `hpcviews logs {record.name}` shows its last words, "
                f"`hpcviews stop {record.name}` clears it away"
            )
        access = records.find_access(record.name)
        with Client(access=found.place.access("client"), timeout=ANSWER_S) as client:
            return describe_status(access.cluster, client.status(), describe_job(file, job)), None
    except ConnectError as error:
        state = found.liveness.value
        if found.liveness in (Liveness.RUNNING, Liveness.ELSEWHERE):
            state = "unreachable" if job is None or not job.has_ended else Liveness.DEAD.value
        if found.liveness is Liveness.QUEUED:
            state = "queued" if job is None or not job.has_ended else Liveness.DEAD.value
            described: dict[str, Any] = {
                "name": record.name,
                "state": state,
                "controller": None,
                "sets": [],
                "engines": [],
            }
            is_waiting = state == "queued"
            return described | {"job": describe_job(file, job)}, None if is_waiting else error
        controller = {"host": record.host, "pid": record.pid, "version": record.version, "started": record.started}
        described = {"name": record.name, "state": state, "controller": controller, "sets": [], "engines": []}
        return described | {"job": describe_job(file, job)}, error


def describe_status(name: str, status: m.Status, job: dict[str, Any] | None = None) -> dict[str, Any]:
    """``status --json`` of a controller that answered."""
    return {
        "name": name,
        "state": status.state,
        "job": job,
        "controller": {
            "host": status.host,
            "pid": status.pid,
            "version": status.version,
            "started": status.started,
            "endpoints": list(status.endpoints),
            "clients": status.clients,
            "waiting_tasks": status.waiting_tasks,
            "malformed": status.malformed,
        },
        "sets": [
            {"id": s.id, "launcher": s.launcher, "n": s.n, "state": s.state, "why": s.why, "log": s.log}
            for s in status.sets
        ],
        "engines": [
            {
                "id": e.info.id,
                "state": e.state,
                "why": e.why,
                "host": e.info.host,
                "pid": e.info.pid,
                "rank": e.info.rank,
                "world_size": e.info.world_size,
                "local_rank": e.info.local_rank,
                "set": e.info.set_id,
                "index": e.info.index,
                "queued": e.queued,
                "completed": e.completed,
                "python": e.info.python,
                "mpi": e.info.mpi,
            }
            for e in status.engines
        ],
    }


def render_status(described: dict[str, Any]) -> str:
    """The same for people."""
    controller = described["controller"]
    lines = [f"cluster     {described['name']}: {described['state']}"]
    job = described["job"]
    if job is not None:
        says = job["says"] or f"{job['scheduler']} does not answer"
        lines.append(f"job         {job['id'] or '(not known yet)'} of {job['scheduler']}: {says}")
    if controller is None:
        return "\n".join(lines)
    lines.append(
        f"controller  pid {controller['pid']} on {controller['host']}, hpcviews {controller['version']}, "
        f"since {render_time(controller['started'])}"
    )
    if "endpoints" in controller:
        lines.append(f"addresses   {', '.join(controller['endpoints'])}")
        # One of the clients is this command.
        lines.append(f"clients     {controller['clients'] - 1}, {controller['waiting_tasks']} tasks wait for an engine")
    for engine_set in described["sets"]:
        registered = sum(e["set"] == engine_set["id"] and e["state"] != "lost" for e in described["engines"])
        line = f"set {engine_set['id']}       {engine_set['state']}: {registered} of {engine_set['n']} engines by "
        lines.append(line + engine_set["launcher"] + (f"; {engine_set['why']}" if engine_set["why"] else ""))
    if described["engines"]:
        head = ("ENGINE", "STATE", "HOST", "PID", "RANK", "QUEUED", "DONE")
        rows = [
            (
                e["id"], e["state"], e["host"], e["pid"], "-" if e["rank"] is None else e["rank"], e["queued"],
                e["completed"],
            )
            for e in described["engines"]
        ]  # fmt: skip
        lines += ["", render_columns(head, rows)]
        lines += [f"engine {e['id']} {e['why']}" for e in described["engines"] if e["why"]]
    return "\n".join(lines)


def render_time(moment: float) -> str:
    """A Unix time in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
