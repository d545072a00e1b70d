"""What the client knows of the cluster's engines, kept current by the controller's messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from hpcviews.errors import EngineError, HpcviewsError, LaunchError, find_error_class
from hpcviews.ids import EngineId
from hpcviews.wire import messages as m

GONE_KEPT_MAX = 10_000
"""How many engines that left are remembered, to name them in metadata and errors."""


class Registry:
    """Engines and engine sets. The I/O thread writes, any thread reads and waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._engines: dict[int, m.EngineInfo] = {}
        self._gone: dict[int, m.EngineInfo] = {}
        self._why_gone: dict[int, str] = {}
        self._sets: dict[int, m.SetInfo] = {}
        self._ids: tuple[EngineId, ...] | None = ()
        """Sorted ids; None: to be made anew. Ten thousand engines join one by one, and nobody looks each time."""
        self._registered: dict[int, int] = {}
        """How many engines of each set are there."""
        self._departures = 0
        self._last_departure = ""
        self._end: HpcviewsError | None = None

    @property
    def ids(self) -> tuple[EngineId, ...]:
        """Registered engines, ascending."""
        ids = self._ids
        if ids is None:
            with self._changed:
                ids = self._ids = tuple(EngineId(i) for i in sorted(self._engines))
        return ids

    @property
    def engines(self) -> dict[EngineId, m.EngineInfo]:
        """Registered engines by id."""
        with self._changed:
            return {EngineId(i): self._engines[i] for i in sorted(self._engines)}

    @property
    def count(self) -> int:
        """How many engines are registered."""
        return len(self._engines)

    @property
    def sets(self) -> list[m.SetInfo]:
        """Engine sets, in the order they were started."""
        return [info for _, info in sorted(self._sets.items())]

    def find(self, engine_id: int) -> m.EngineInfo | None:
        """An engine that is there, or has been."""
        return self._engines.get(engine_id) or self._gone.get(engine_id)

    def get_infos(self, engine_ids: Iterable[int] | None) -> list[m.EngineInfo]:
        """Those of these engines that are there; None for all."""
        if engine_ids is None:
            return list(self._engines.values())
        return [info for engine_id in engine_ids if (info := self._engines.get(engine_id)) is not None]

    # ------------------------------------------------------------ what the controller says

    def on_welcome(self, welcome: m.Welcome) -> None:
        """The connection is new: this is what there is."""
        with self._changed:
            self._end = None
            self._gone.update(self._engines)
            self._engines.clear()
            self._registered.clear()
            self._sets = {info.id: info for info in welcome.sets}
            self._add(welcome.engines)

    def on_joined(self, joined: m.EnginesJoined) -> None:
        """Engines registered."""
        with self._changed:
            self._add(joined.engines)

    def on_left(self, left: m.EnginesLeft) -> None:
        """Engines are gone."""
        with self._changed:
            for gone in left.engines:
                info = self._engines.pop(gone.id, None)
                if info is not None:
                    self._gone[gone.id] = info
                    self._registered[info.set_id] -= 1
                self._departures += 1
                self._last_departure = f"engine {gone.id} {gone.why}"
            while len(self._gone) > GONE_KEPT_MAX:
                del self._gone[next(iter(self._gone))]
            self._update()

    def _add(self, engines: list[m.EngineInfo]) -> None:
        for info in engines:
            if info.id not in self._engines:
                self._registered[info.set_id] = self._registered.get(info.set_id, 0) + 1
            self._engines[info.id] = info
        self._update()

    def on_set(self, changed: m.SetChanged) -> None:
        """An engine set moved to another state."""
        with self._changed:
            self._sets[changed.info.id] = changed.info
            self._changed.notify_all()

    def on_end(self, error: HpcviewsError) -> None:
        """No more will be heard, for now."""
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def _update(self) -> None:
        self._ids = None
        self._changed.notify_all()

    # ------------------------------------------------------------ waiting

    def wait_for_engines(
        self, n: int | None, timeout_s: float | None, on_progress: Callable[[int, int], object] | None
    ) -> None:
        """Wait until `n` engines are registered; see `Client.wait_for_engines`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        departures = self._departures
        shown = -1
        while True:
            with self._changed:
                ready = self.count
                wanted = self.count_expected() if n is None else n
                if ready < wanted and ready == shown:
                    self._check_hope(wanted, departures)
                    rest = None if deadline is None else deadline - time.monotonic()
                    if rest is not None and rest <= 0:
                        raise TimeoutError(
                            f"{wanted} engines not ready in {timeout_s:g} seconds. Currently ready: {ready}"
                        )
                    self._changed.wait(rest)
                    continue
            # Outside the lock: it is the caller's code.
            if on_progress is not None and ready != shown:
                on_progress(ready, wanted)
            shown = ready
            if ready >= wanted:
                return

    def wait_for_engines_async(
        self, n: int | None, timeout_s: float | None, on_progress: Callable[[int, int], object] | None
    ) -> Future[None]:
        """As `wait_for_engines`, as a future. Cancelling it gives it up."""
        future: Future[None] = Future()

        def wait() -> None:
            try:
                self.wait_for_engines(n, timeout_s, on_progress)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the future's
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            else:
                if future.set_running_or_notify_cancel():
                    future.set_result(None)

        # Who waits for engines does so a few times in a program: a thread is simpler than a list of who waits.
        threading.Thread(target=wait, name="hpcviews-engines", daemon=True).start()
        return future

    def count_expected(self) -> int:
        """How many engines there will be when all sets that are being started are complete."""
        missing = sum(max(0, s.n - self._registered.get(s.id, 0)) for s in self._sets.values() if s.state == "starting")
        return len(self._engines) + missing

    def _check_hope(self, wanted: int, departures: int) -> None:
        if self._end is not None:
            raise self._end
        if self.count_expected() >= wanted:
            return
        for engine_set in reversed(self.sets):
            if engine_set.state == "failed" or (engine_set.state == "stopping" and engine_set.error):
                kind = find_error_class(engine_set.error) or LaunchError
                raise kind(f"engine set {engine_set.id} ({engine_set.launcher}) failed: {engine_set.why}")
        if self._departures > departures:
            raise EngineError(f"{self._last_departure} while waiting for {wanted} engines; {self.count} are there")
