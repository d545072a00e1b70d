"""Signals to engines, and their end: what clients and views share."""

from __future__ import annotations

import signal
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from hpcviews.client.targets import parse_targets
from hpcviews.errors import NoEnginesRegistered, UsageError
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    from hpcviews.client.connection import Connection


def parse_signal(sig: int | str) -> int:
    """A signal's number, from a number or a name: 2, "SIGINT", "INT", "int".

    Raises:
        ValueError: There is no such signal; the message has those that there are.
        TypeError: Neither a number nor a name.
    """
    if isinstance(sig, bool) or not isinstance(sig, int | str):
        raise TypeError(f"a signal is a number or a name, not {sig!r}")
    try:
        if isinstance(sig, int):
            return int(signal.Signals(sig))
        name = sig.upper()
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except (ValueError, KeyError):
        names = ", ".join(sorted(known.name for known in signal.Signals))
        raise ValueError(f"no signal {sig!r}; there are {names}") from None


class EngineControl:
    """Mixed into Client and View: what they do to engines, not with them.

    Each method takes `targets` as calls do, and `block`: whether to wait until it is done. Without, it returns a
    `concurrent.futures.Future` of None.
    """

    if TYPE_CHECKING:
        _connection: Connection
        block: Any

        def _get_control_targets(self) -> Any: ...

    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Future[None] | None:
        """Send a signal to the processes of engines. SIGINT interrupts what they run, and is ignored by idle ones.

        Args:
            sig: Number or name.
            targets: Which engines; None: those of this object.
            block: Wait until it has been handed on to all of them; None: as the flag.
        Raises:
            ValueError: There is no such signal.
            NoSuchEngine: One of the engines is not there.
        """
        number = parse_signal(sig)
        ids = self._find_control_targets(targets)
        return self._ask(lambda seq: m.SignalEngines(seq, ids, number), block)

    def interrupt(self, targets: Any = None, block: bool | None = None) -> Future[None] | None:
        """Raise KeyboardInterrupt in what engines run. It ends there with that error, and is not tried again.

        Python code and waiting system calls are interrupted at once; compiled code when it returns to Python.

        Args:
            targets: Which engines; None: those of this object.
            block: Wait until it has been handed on to all of them; None: as the flag.
        Raises:
            NoSuchEngine: One of the engines is not there.
        """
        return self.send_signal(signal.SIGINT, targets, block)

    def kill(self, targets: Any = None, block: bool | None = True) -> Future[None] | None:
        """End the processes of engines at once, whatever they do, also if they are stopped.

        What they were asked ends with EngineError; tasks with retries left run elsewhere.

        Args:
            targets: Which engines; None: those of this object.
            block: Wait until they are gone.
        Raises:
            NoSuchEngine: One of the engines is not there.
        """
        ids = self._find_control_targets(targets)
        return self._ask(lambda seq: m.EndEngines(seq, ids, "kill"), block)

    def shutdown(
        self, targets: Any = None, restart: bool = False, hub: bool = False, block: bool | None = None
    ) -> Future[None] | None:
        """End engines, or restart them, or end the whole cluster.

        Args:
            targets: Which engines; None: those of this object.
            restart: Have their launcher start others in their place, with the same ids and empty namespaces.
                `Client.wait_for_engines` waits for them. Ranks of an MPI world can only be restarted together.
            hub: End all engines and the controller, and close the client.
            block: Wait until they are gone, and for a restart, until the others are being started; None: as the flag.
        Raises:
            UsageError: These engines cannot be restarted; the message says why. Nothing was ended.
            LaunchError: They were ended, and the others could not be started.
            NoSuchEngine: One of the engines is not there.
        """
        if hub:
            if restart:
                raise UsageError("hub=True ends the whole cluster, so nothing could restart; choose one of the two")
            self._end_cluster()
            return None
        try:
            ids = self._find_control_targets(targets)
        except NoEnginesRegistered:
            ids = []  # as in ipyparallel: what is not there needs no end
        how = "restart" if restart else "stop"
        return self._ask(lambda seq: m.EndEngines(seq, ids, how), block)

    def _find_control_targets(self, targets: Any) -> list[int]:
        if targets is None or (isinstance(targets, str) and targets.lower() == "all"):
            targets = self._get_control_targets()
        self._connection.check_usable()
        return list(parse_targets(targets, self._connection.registry.ids).ids)

    def _ask(self, make_question: Any, block: bool | None) -> Future[None] | None:
        answer = self._connection.ask_async(make_question)
        if self.block if block is None else block:
            answer.result()
            return None
        done: Future[None] = Future()

        def tell(future: Future[Any]) -> None:
            if not done.set_running_or_notify_cancel():
                return
            error = future.exception()
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        answer.add_done_callback(tell)
        return done

    def _end_cluster(self) -> None:
        raise NotImplementedError("in Client and View")
