"""The options of commands that may submit a job: what the job is to have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from hpcviews.cluster.batch import JobRequest, parse_walltime

F = TypeVar("F", bound=Callable[..., Any])

# (option, field of JobRequest, metavar, help)
_TEXTS = (
    ("--mem", "mem", "SIZE", "Memory per node, e.g. 16G."),
    ("--queue", "queue", "Q", "Queue or partition."),
    ("--account", "account", "A", "Account that pays."),
    ("--qos", "qos", "QOS", "Quality of service."),
    ("--constraint", "constraint", "C", "Features that the nodes must have."),
    ("--reservation", "reservation", "R", "Reservation to run in."),
    ("--exclude", "exclude", "NODES", "Nodes not to use."),
    ("--nodelist", "nodelist", "NODES", "Nodes to use."),
    ("--dependency", "dependency", "D", "Jobs to wait for, e.g. afterok:123."),
    ("--job-name", "job_name", "NAME", "Name of the job.  [default: one with the cluster's name in it]"),
    ("--conda", "conda", "ENV", "Conda environment to activate."),
    ("--venv", "venv", "DIR", "Virtual environment to activate."),
    ("--python", "python", "PATH", "Python in the job.  [default: that of --conda or --venv, else this one]"),
)
_NUMBERS = (
    ("--nodes", "nodes", "Nodes."),
    ("--per-node", "engines_per_node", "Engines per node."),
    ("--cpus", "cpus_per_engine", "Cores per engine."),
    ("--gpus", "gpus_per_engine", "GPUs per engine."),
)
_LISTS = (
    ("--directive", "directives", "OPT", "Option of the batch system as it is, e.g. --directive=--licenses=x:1."),
    ("--skip-option", "skip", "OPT", "Option to leave out of the script, e.g. --mem."),
    ("--prologue", "prologue", "LINE", "Line of bash to run first in the job."),
    ("--module", "modules", "M", "Module to load."),
)


def _read_walltime(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_walltime(value)


def job_options(command: F) -> F:
    """Give a command the options; they arrive as the arguments of `take_request`."""
    options = [
        *(click.option(o, f, type=int, metavar="N", help=f"Job: {text}") for o, f, text in _NUMBERS),
        click.option(
            "--time", "walltime_s", callback=_read_walltime, metavar="T", help="Job: longest time, e.g. 90m, 2:00:00."
        ),
        *(click.option(o, f, metavar=m, help=f"Job: {text}") for o, f, m, text in _TEXTS),
        *(click.option(o, f, multiple=True, metavar=m, help=f"Job: {text}") for o, f, m, text in _LISTS),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def take_request(options: dict[str, Any]) -> JobRequest | None:
    """Take the job's options out of a command's; None when none was given."""
    request = JobRequest(**{name: options.pop(name) for name in vars(JobRequest())})
    return request if request != JobRequest() else None
