"""SLURM's short forms: lists of hosts (``node[01-03,7],gpu1``) and counts per node (``2(x3),1``)."""

from __future__ import annotations

import re

NODES_MAX = 100_000
"""More than any machine has; a list that claims more is a mistake, and would fill the memory."""

_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_hostlist(text: str) -> list[str]:
    """All names, in order.

    Raises:
        ValueError: Not a list of hosts.
    """
    names: list[str] = []
    for part in _split(text):
        names += _expand(part)
        if len(names) > NODES_MAX:
            raise ValueError(f"more than {NODES_MAX} hosts")
    return names


def parse_counts(text: str) -> list[int]:
    """A number for each node, in order.

    Raises:
        ValueError: Not such a list.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"not a list of counts per node: {text!r}")
        times = int(match[2] or 1)
        if len(counts) + times > NODES_MAX:
            raise ValueError(f"more than {NODES_MAX} nodes")
        counts += [int(match[1])] * times
    return counts


def _split(text: str) -> list[str]:
    """At the commas that are outside of brackets."""
    parts, depth, begin = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"not a list of hosts: {text!r}")
        if letter == "," and depth == 0:
            parts.append(text[begin:position])
            begin = position + 1
    parts.append(text[begin:])
    if depth or not all(parts):
        raise ValueError(f"not a list of hosts: {text!r}")
    return parts


def _expand(part: str) -> list[str]:
    """All names of ``r[1-2]n[01-04]``: the first bracket changes slowest."""
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    names: list[str] = []
    tails = _expand(after) if after else [""]
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise ValueError(f"not a range of hosts: {item!r} in {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= NODES_MAX:
            raise ValueError(f"more than {NODES_MAX} hosts in {part!r}")
        width = len(match[1])
        names += [f"{before}{number:0{width}}{tail}" for number in range(first, last + 1) for tail in tails]
    return names
