"""Signals and interrupts that clients send to engines and to their own requests."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable

from hpcviews.controller import answers, requests
from hpcviews.controller.core import Core
from hpcviews.controller.events import EngineProcess, SignalEngines
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, Frames, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, SetId
from hpcviews.wire import messages as m

log = logging.getLogger("hpcviews.controller.signals")

NEED_NO_READER = frozenset({signal.SIGKILL, signal.SIGCONT})
"""Signals for engines that may not read their messages: their processes get them from whoever started them, too."""


def on_signal_engines(
    core: Core, out: Outbox, client: Client, message: m.SignalEngines, frames: Frames, now: float
) -> None:
    """Engines are to send a signal to themselves."""
    if not 0 < message.signum < signal.NSIG:
        raise ProtocolError(f"signal {message.signum}")
    engines = find_engines(core, message.targets)
    if isinstance(engines, m.ErrorInfo):
        out.send(client.route, m.Acknowledged(message.seq, engines))
        return
    log.info("client %s: sends signal %d to engines %s", client.session, message.signum, list(message.targets))
    for engine in engines:
        out.send(engine.route, m.EngineSignal(message.signum))
    out.send(client.route, m.Acknowledged(message.seq))
    if message.signum in NEED_NO_READER and engines:
        out.order(SignalEngines(locate(core, engines), message.signum))


def on_interrupt_requests(
    core: Core, out: Outbox, client: Client, message: m.InterruptRequests, frames: Frames, now: float
) -> None:
    """Requests are to end: by KeyboardInterrupt where they run, with TaskAborted where they have not started.

    Nobody here knows which of the two an engine is at: it is asked to give them back, and then to interrupt what it
    has not given back. Neither tries again.
    """
    keys: dict[Engine, list[int]] = {}
    for work in requests.find_works(core, client, message.seqs):
        if work.phase in (WorkPhase.SENT, WorkPhase.RECALLED):
            assert work.engine is not None
            keys.setdefault(work.engine, []).append(work.key)
    requests.on_abort(core, out, client, m.Abort(message.seqs), [], now)
    for engine, own in keys.items():
        out.send(engine.route, m.InterruptRuns(own))


def find_engines(core: Core, targets: Iterable[int]) -> list[Engine] | m.ErrorInfo:
    """The registered engines of these ids, each once; an error if one of them is not there."""
    engines: dict[EngineId, Engine] = {}
    for target in targets:
        engine = core.engines.get(EngineId(target))
        if engine is None:
            return m.ErrorInfo(*answers.describe_missing(core, EngineId(target)), "", True)
        engines[engine.id] = engine
    return list(engines.values())


def locate(core: Core, engines: Iterable[Engine]) -> tuple[EngineProcess, ...]:
    """Where their processes are."""
    return tuple(
        EngineProcess(e.id, SetId(e.info.set_id), e.info.pid if e.info.host == core.identity.host else 0)
        for e in engines
    )
