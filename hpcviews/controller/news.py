"""What all clients are told: changes of the engine sets, and whatever else concerns everybody."""

from __future__ import annotations

import logging

from hpcviews.controller.core import Core
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import EngineSet, SetPhase
from hpcviews.wire import messages as m

log = logging.getLogger("hpcviews.controller.members")


def tell_clients(core: Core, out: Outbox, message: m.Message) -> None:
    """Send it to every client."""
    for route in core.clients:
        out.send(route, message)


def move_set(core: Core, out: Outbox, engine_set: EngineSet, to: SetPhase, why: str = "", error: str = "") -> None:
    """An engine set goes to another phase."""
    engine_set.move(to, why, error)
    level = logging.ERROR if to is SetPhase.FAILED else logging.INFO
    log.log(level, "engine set %d: %s%s", engine_set.id, to.value, f" ({why})" if why else "")
    tell_clients(core, out, m.SetChanged(engine_set.info()))


def settle_set(core: Core, out: Outbox, engine_set: EngineSet) -> None:
    """It is ready when all engines are there that it is to have."""
    is_complete = len(engine_set.engines - engine_set.released) == engine_set.n
    if is_complete and engine_set.phase in (SetPhase.STARTING, SetPhase.DEGRADED):
        move_set(core, out, engine_set, SetPhase.READY)
