"""``python -m hpcviews.engine.forkserver``: the starter `fork`'s program. Imports once, forks n engines, waits.

Importing what an engine needs takes 0.15 s of a core; forking an engine from a process that has done so takes a
millisecond, and the engines share the memory. Forking is safe here because nothing that fork breaks exists yet: no
ZeroMQ context and no Python thread. (OpenBLAS starts threads when numpy is imported; it stops them in its own
fork handler.)
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from hpcviews import prctl
from hpcviews.engine.app import EngineOptions, parse_options, run_engine
from hpcviews.errors import UsageError
from hpcviews.exits import render_exit

TERM_GRACE_S = 5.0
"""Engines that are there this long after SIGTERM are killed; what sent us the SIGTERM may be gone itself."""

ACCESS_POLL_S = 0.005

_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_ENDING = _SIGNALS - {signal.SIGCHLD}
_OUR_SIGNALS = frozenset({signal.SIGTERM, signal.SIGKILL})


def main(argv: list[str]) -> int:
    """Fork the engines, and wait until all have ended. The exit code is 0 if they ended well, or were told to."""
    options, n = parse_options(argv)
    # Signals are waited for, not handled: nothing can interrupt a fork, and none is lost before it is asked for.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # If the controller is killed, engines that hang in C code would not notice; we do.
    prctl.set_parent_death_signal(signal.SIGTERM)
    _preload()
    if not _wait_for_access(options):
        return 0
    return Server(options, n, old_mask).run()


class Server:
    """The parent of the engines."""

    def __init__(self, options: EngineOptions, n: int, engine_mask: set[signal.Signals | int]):
        self._options = options
        self._n = n
        self._engine_mask = engine_mask
        self._engines: dict[int, int] = {}  # pid -> index
        self._is_ending = False
        self._kill_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Fork, wait, report."""
        if not self._fork_all():
            self._code = 1
            self._end(signal.SIGKILL)
        while self._engines:
            self._wait()
        return self._code

    def _fork_all(self) -> bool:
        # Collections in the engines leave what exists now alone, so its memory stays shared.
        gc.collect()
        gc.freeze()
        parent = os.getpid()
        for local_index in range(self._n):
            index = self._options.index + local_index
            try:
                pid = os.fork()
            except OSError as error:
                _say(f"cannot fork engine {index}, number {local_index} of {self._n} here: {error.strerror}")
                return False
            if pid == 0:
                self._be_engine(index, local_index, parent)
            self._engines[pid] = index
        return True

    def _be_engine(self, index: int, local_index: int, parent: int) -> NoReturn:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._engine_mask)
            prctl.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == parent:
                prctl.set_process_name(f"engine {self._options.set_id}.{index}")
                _make_random_differ()
                run_engine(replace(self._options, index=index, local_index=local_index))
                code = 0
        except BaseException:  # noqa: BLE001 - the top of the engine; nothing may get into the parent's code
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _wait(self) -> None:
        # A day instead of for ever: sigwaitinfo, which can wait so, cannot have a limit.
        wait = 86_400.0 if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        arrived = signal.sigtimedwait(_SIGNALS, wait)
        if arrived is None:
            if self._kill_at is not None:
                self._kill_at = None
                self._end(signal.SIGKILL)
        elif arrived.si_signo in _ENDING:
            self._end(signal.SIGTERM)
        else:
            self._reap()  # one SIGCHLD may stand for many

    def _end(self, signum: signal.Signals) -> None:
        if signum == signal.SIGTERM and not self._is_ending:
            self._kill_at = time.monotonic() + TERM_GRACE_S
        self._is_ending = True
        for pid in self._engines:  # not reaped yet, so the pids are theirs
            os.kill(pid, signum)
            os.kill(pid, signal.SIGCONT)  # one that is stopped would not see SIGTERM

    def _reap(self) -> None:
        while self._engines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            index = self._engines.pop(pid, None)
            if index is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            if code == 0 or (self._is_ending and -code in _OUR_SIGNALS):
                continue
            _say(f"engine {self._options.set_id}.{index} (pid {pid}): {render_exit(code)}")
            if not self._is_ending:
                self._code = 1


def _preload() -> None:
    """Import what engines will need, beyond what the import of this module brought."""
    with contextlib.suppress(ImportError):
        import numpy as np

        np.random  # noqa: B018 - loaded on first use, and user code will


def _make_random_differ() -> None:
    """Python's own generator is seeded anew after fork; numpy's is not, and all engines would draw the same."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _wait_for_access(options: EngineOptions, clock: Callable[[], float] = time.monotonic) -> bool:
    """Wait until the controller has written the engines' access file; False when told to end meanwhile.

    Engines wait for it too, but hundreds that poll would slow down the controller that is to write it.
    """
    deadline = clock() + options.timeout_s
    while not options.access.exists() and options.access.parent.is_dir() and clock() < deadline:
        arrived = signal.sigtimedwait(_SIGNALS, ACCESS_POLL_S)
        if arrived is not None and arrived.si_signo in _ENDING:
            return False
    return True  # if it is not there, the engines say so, in the words they have for it


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode(errors="replace"))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        sys.exit(str(error))
