"""What the scripts of all batch systems have in common: everything below the directives."""

from __future__ import annotations

import re
import shlex

from hpcviews.cluster.batch import JobOrder
from hpcviews.errors import UsageError

_PLAIN = re.compile(r"[\w@%+=:,./-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_line(name: str, value: str) -> str:
    """The value of a directive, which must stay on its line.

    Raises:
        UsageError: It cannot be written there.
    """
    if _CONTROL.search(value):
        raise UsageError(f"{name} cannot be {value!r}: a job script's options must not have line breaks")
    return value


def quote_directive(value: str) -> str:
    """As sbatch reads it: words end at blanks, except inside of double quotes; \\ protects the next letter."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def render_body(order: JobOrder) -> list[str]:
    """From the working directory to the program, whose place bash gives up: it gets the job's signals itself."""
    request = order.request
    lines = ["", f"cd -- {shlex.quote(order.cwd)} || exit 1"]
    if request.modules:
        lines.append("module load " + " ".join(map(shlex.quote, request.modules)))
    lines += request.prologue
    if request.conda is not None:
        lines.append('eval "$(conda shell.bash hook)"')
        lines.append(f"conda activate {shlex.quote(request.conda)} || exit 1")
    if request.venv is not None:
        lines.append(f". {shlex.quote(request.venv + '/bin/activate')} || exit 1")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(order.environment.items())]
    lines.append("exec " + shlex.join(order.argv))
    return lines
