"""What the controller decides about shared memory: who may use it, and when its segments are of no use any more.

It forwards handles unread. To a peer that cannot open them it sends the bytes instead (`Unshared`; the shell maps
them), which only the controller's own room allows; clients use shared memory only where that goes well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcviews.controller.core import Core
from hpcviews.controller.deliveries import Delivery
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, Frames, Work
from hpcviews.ids import RunKey
from hpcviews.wire import messages as m
from hpcviews.wire.shared import has_handles, is_handle


@dataclass(frozen=True, slots=True)
class Unshared:
    """Stands for the bytes of a handle, for a peer that cannot open it."""

    handle: Any

    def __len__(self) -> int:
        return len(self.handle)


def carry(frames: Frames, sender_room: str, receiver_room: str) -> Frames:
    """Payload frames as their receiver can read them."""
    if sender_room == receiver_room or not has_handles(frames):
        return frames
    return [Unshared(frame) if is_handle(frame) else frame for frame in frames]


def may_share(work: Work, engine: Engine) -> bool:
    """Whether the client of a request can open what this engine writes."""
    client = work.client
    # A client that is gone maps nothing: its results come as frames, and can be kept for who asks for them.
    return work.may_share and client.is_listening and client.room != "" and client.room == engine.info.room


def send_result(core: Core, out: Outbox, client: Client, result: m.Result, frames: Frames, work: Work) -> None:
    """Send the result of a request to a client that waits for it, however its payload travels."""
    engine = work.engine
    if engine is None or not has_handles(frames):
        out.send(client.route, result, frames)
        return
    if client.room == engine.info.room:
        core.deliveries.open(client, result.seq, engine, work.key)
    out.send(client.route, result, carry(frames, engine.info.room, client.room))


def end_delivery(core: Core, out: Outbox, engine: Engine, key: RunKey, frames: Frames) -> None:
    """The result of an attempt was sent to all who wait for it; the engine is told if that is nobody."""
    if has_handles(frames) and not core.deliveries.is_open(engine, key):
        _on_over(core, out, [(engine, key)])


def on_mapped(core: Core, out: Outbox, client: Client, message: m.Mapped, frames: Frames, now: float) -> None:
    """A client has mapped results."""
    _on_over(core, out, core.deliveries.take_mapped(client, message.seqs))


def on_client_gone(core: Core, out: Outbox, client: Client) -> None:
    """A client is gone: what it was to map, nobody maps; its own segments go when no request of it runs on."""
    _on_over(core, out, core.deliveries.take_client(client))
    client.is_clearing = True
    on_work_ended(core, out, client)


def on_work_ended(core: Core, out: Outbox, client: Client) -> None:
    """A request ended."""
    if client.is_clearing and not client.works:
        party, client.party = client.party, ""
        _clear(core, out, client.room, party)


def on_engine_joined(core: Core, engine: Engine) -> None:
    """An engine registered."""
    if engine.info.room:
        core.neighbours.setdefault(engine.info.room, {})[engine.id] = engine


def on_engine_gone(core: Core, out: Outbox, engine: Engine) -> None:
    """An engine is gone: its segments go when its last results have been mapped."""
    neighbours = core.neighbours.get(engine.info.room, {})
    if neighbours.get(engine.id) is engine:
        del neighbours[engine.id]
        if not neighbours:
            del core.neighbours[engine.info.room]
    if not core.deliveries.is_waiting_for(engine):
        party, engine.party = engine.party, ""
        _clear(core, out, engine.info.room, party)


def _on_over(core: Core, out: Outbox, over: list[Delivery]) -> None:
    keys: dict[Engine, list[int]] = {}
    for engine, key in over:
        keys.setdefault(engine, []).append(key)
    for engine, own in keys.items():
        if core.engine_by_route.get(engine.route) is engine:
            out.send(engine.route, m.Delivered(own))
        else:
            on_engine_gone(core, out, engine)


def _clear(core: Core, out: Outbox, room: str, party: str) -> None:
    if not party:
        return
    if room == core.identity.room:
        out.clear_segments(party)
        return
    for engine in core.neighbours.get(room, {}).values():
        out.send(engine.route, m.ClearSegments(party))
        return
    # No engine is in that room any more; whoever leaves it last clears it.
