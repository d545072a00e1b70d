"""A real IPython in a terminal: magics, Ctrl-C, progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from bare_cluster import BareCluster

from hpcviews.client.client import Client
from hpcviews.environment import get_environment

TIMEOUT_S = 40
PROMPT = r"In \[\d+\]: "


class Terminal:
    """IPython as a user has it, with a client of the cluster."""

    def __init__(self, cluster: BareCluster, home: Path):
        environment = {**get_environment(), "IPYTHONDIR": str(home), "TERM": "xterm", "COLUMNS": "120"}
        arguments = ["-m", "IPython", "--no-banner", "--simple-prompt", "--colors=NoColor", "--no-confirm-exit"]
        self.child: Any = pexpect.spawn(
            sys.executable, arguments, encoding="utf-8", timeout=TIMEOUT_S, env=environment, dimensions=(50, 120)
        )
        self.child.expect(PROMPT)
        self.run("import hpcviews, time")
        self.run(f"rc = hpcviews.Client(access={str(cluster.access)!r})")

    def run(self, line: str) -> str:
        """Type a line, and give back what appears up to the next prompt."""
        self.child.sendline(line)
        return self.read()

    def read(self) -> str:
        self.child.expect(PROMPT)
        return str(self.child.before)

    def interrupt(self) -> None:
        self.child.sendintr()

    def close(self) -> None:
        self.child.sendline("exit")
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus == 0


@pytest.fixture
def terminal(cluster: BareCluster, rc: Client, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(cluster, tmp_path)
    try:
        yield opened
        opened.close()
    finally:
        opened.child.close(force=True)


def test_px_shows_what_engines_print_and_values(terminal: Terminal) -> None:
    shown = terminal.run("%px print('hello'); 6 * 7")
    for engine in range(3):
        assert f"[stdout:{engine}] hello" in shown
        assert f"Out[{engine}:" in shown
    assert "]: 42" in shown


def test_errors_are_shown_and_counted(terminal: Terminal) -> None:
    shown = terminal.run("%px 1 / 0")
    assert shown.count("ZeroDivisionError: division by zero") == 3
    assert shown.rstrip().endswith("3 errors")


def test_autopx_in_a_terminal(terminal: Terminal, rc: Client) -> None:
    assert "%autopx enabled" in terminal.run("%autopx")
    terminal.run("where = 'there'")
    assert "%autopx disabled" in terminal.run("%autopx")
    assert rc[:]["where"] == ["there"] * 3
    assert "NameError" in terminal.run("where")


def test_ctrl_c_interrupts_the_engines_and_the_cell_ends(terminal: Terminal, rc: Client) -> None:
    terminal.child.sendline("%px print('begun', flush=True); time.sleep(1000)".replace("time", "__import__('time')"))
    for _ in range(3):
        terminal.child.expect(r"begun\r?\n")
    terminal.interrupt()
    shown = terminal.read()
    assert "Received Keyboard Interrupt. Sending signal SIGINT to engines..." in shown
    assert shown.count("KeyboardInterrupt\r\n") >= 3, "the engines' own"
    assert rc[:].apply_sync(int) == [0, 0, 0], "they are free again"
    assert "Traceback" not in terminal.run("%px pass")


def test_long_maps_and_waits_have_a_bar_in_a_terminal(terminal: Terminal) -> None:
    terminal.run("import hpcviews.client.progress as p; p.SHOWN_AFTER_S = 0.05")
    shown = terminal.run("_ = rc.load_balanced_view().map_sync(time.sleep, [0.3] * 9)")
    assert "/9" in shown
    shown = terminal.run("rc[:].apply_async(time.sleep, 0.3).wait_interactive()")
    assert "3/3" in shown
    assert "3/3" in terminal.run("rc.wait_for_engines(3, interactive=True)")
    terminal.run("%pxconfig --progress-after 0")
    assert "3/3" in terminal.run("%px import time; time.sleep(0.3)")


STUBBORN = """
import time
def stubborn():
    print("begun", flush=True)
    while True:
        try:
            time.sleep(1000)
        except KeyboardInterrupt:
            print("no", flush=True)
"""


def test_a_second_ctrl_c_gives_the_prompt_back(mortal: BareCluster, tmp_path: Path) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    rc[:].execute(STUBBORN, block=True)
    terminal = Terminal(mortal, tmp_path)
    try:
        terminal.child.sendline("%px stubborn()")
        for _ in range(2):
            terminal.child.expect(r"begun\r?\n")
        terminal.interrupt()
        for _ in range(2):
            terminal.child.expect(r"no\r?\n")
        terminal.interrupt()
        shown = terminal.read()
        assert "go on with it" in shown and "%pxresult" in shown
        # Other signals end what this one does not.
        rc.send_signal("SIGKILL", block=True)
        assert "lost its connection" in terminal.run("%pxresult")
        terminal.close()
    finally:
        terminal.child.close(force=True)
