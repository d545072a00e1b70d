"""The identifiers, as types: passing an engine's id where a client's belongs is a type error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NewType

EngineId = NewType("EngineId", int)
"""Small integer, given by the controller in order of registration (by rank inside an engine set)."""

Session = NewType("Session", str)
"""One client object; 16 hexadecimal digits, made by the client."""

Seq = NewType("Seq", int)
"""Number of a request within its session, from 0."""

MsgId = NewType("MsgId", str)
"""What users see: ``SESSION-SEQ``; unique for ever, and parseable."""

RunKey = NewType("RunKey", int)
"""One attempt to run one request on one engine; never reused, so a late reply of an older attempt is known."""

Digest = NewType("Digest", bytes)
"""16 bytes of BLAKE2b over a pickled function; its name on the wire."""

SetId = NewType("SetId", int)
"""An engine set: engines that were started together."""


def make_session() -> Session:
    """A new session, random enough never to meet another."""
    return Session(os.urandom(8).hex())


def render_msg_id(session: Session, seq: int) -> MsgId:
    """``SESSION-SEQ``."""
    return MsgId(f"{session}-{seq}")


def parse_msg_id(msg_id: str) -> tuple[Session, Seq]:
    """The inverse of `render_msg_id`.

    Raises:
        ValueError: Not a msg_id.
    """
    session, dash, seq = msg_id.rpartition("-")
    if not dash or len(session) != 16 or not seq.isdigit():
        raise ValueError(f"not a msg_id: {msg_id!r}; msg_ids look like 0123456789abcdef-42 (see AsyncResult.msg_ids)")
    return Session(session), Seq(int(seq))


def render_msg_id_runs(msg_ids: Iterable[str]) -> list[str]:
    """msg_ids, shortly: those with consecutive numbers become one ``SESSION-FIRST..LAST``. Sorted; each once.

    The ten thousand msg_ids of a map are one short text so. What is no msg_id stays as it is.
    """
    numbers: dict[Session, set[int]] = {}
    others: set[str] = set()
    for msg_id in msg_ids:
        try:
            session, seq = parse_msg_id(msg_id)
        except ValueError:
            others.add(msg_id)
        else:
            numbers.setdefault(session, set()).add(seq)
    runs = []
    for session, seqs in sorted(numbers.items()):
        ordered = sorted(seqs)
        first = ordered[0]
        for last, following in zip(ordered, [*ordered[1:], -1], strict=True):
            if following != last + 1:
                runs.append(f"{session}-{first}" if first == last else f"{session}-{first}..{last}")
                first = following
    return runs + sorted(others)


def parse_msg_id_run(text: str) -> tuple[Session, range]:
    """What one text of `render_msg_id_runs` stands for.

    Raises:
        ValueError: Neither a msg_id nor a run of them.
    """
    first, dots, last = text.partition("..")
    session, seq = parse_msg_id(first)
    if not dots:
        return session, range(seq, seq + 1)
    if not last.isdigit() or int(last) < seq:
        raise ValueError(f"not a run of msg_ids: {text!r}")
    return session, range(seq, int(last) + 1)
