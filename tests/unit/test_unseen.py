"""A call that failed and was dropped before anybody looked at it is not lost without a word."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fake_controller import FakeController

from hpcviews.client.client import Client
from hpcviews.client.connection import UNSEEN_REPORTED_MAX
from hpcviews.client.results import AsyncResult
from hpcviews.testing.wait import wait_until


def double(x: int) -> int:
    return 2 * x


def fail_and_drop(fake: FakeController, rc: Client, *, wait: bool = False) -> str:
    ar = rc[1].apply_async(double, 4)
    fake.fail(ar.first, ValueError("bad"), engine=1)
    if wait:
        assert ar.wait(10)
    return ar.msg_ids[0]


def drain(fake: FakeController, rc: Client) -> None:
    """Everything sent so far has been handled, and every callback that waited has run."""
    ar = rc[0].apply_async(double, 1)
    done: list[AsyncResult] = []
    ar.add_done_callback(lambda ar: done.append(ar))  # type: ignore[arg-type]
    fake.answer(ar.first)
    wait_until(lambda: done, 10, "the callbacks")


@pytest.mark.parametrize("wait", [True, False])
def test_failure_that_nobody_saw_is_logged(
    fake: FakeController, rc: Client, caplog: pytest.LogCaptureFixture, wait: bool
) -> None:
    msg_id = fail_and_drop(fake, rc, wait=wait)
    wait_until(lambda: caplog.records, 10, "the warning")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "hpcviews.client.connection"
    text = record.getMessage()
    assert "double failed on engine 1" in text and msg_id in text and "Traceback: line 1" in text


def test_failure_that_was_looked_at_is_not_logged(
    fake: FakeController, rc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    looks = [
        lambda ar: ar.exception(),
        lambda ar: ar.get(return_exceptions=True),
        lambda ar: ar.successful(),
        lambda ar: ar.status,
        lambda ar: ar.metadata,
        lambda ar: ar.split()[0].exception(),
        lambda ar: next(iter(AsyncResult.join(ar).split())).exception(),
    ]
    for look in looks:
        ar = rc[1].apply_async(double, 4)
        fake.fail(ar.first, ValueError("bad"), engine=1)
        assert ar.wait(10)
        look(ar)
        del ar
    cancelled = rc[1].apply_async(double, 4)
    cancelled.cancel()
    fake.fail(cancelled.first, ValueError("bad"), engine=1)
    withdrawn = rc[1].apply_async(double, 4)
    fake.refuse(withdrawn.first, "TaskAborted", "withdrawn")
    del cancelled, withdrawn
    drain(fake, rc)
    gc.collect()
    drain(fake, rc)
    assert not caplog.records


def test_log_is_not_filled(fake: FakeController, rc: Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(UNSEEN_REPORTED_MAX + 10):
        fail_and_drop(fake, rc)
    drain(fake, rc)
    assert len(caplog.records) == UNSEEN_REPORTED_MAX
    assert f"the {UNSEEN_REPORTED_MAX}th of this client" in caplog.records[-1].getMessage()


def test_end_of_the_interpreter_is_silent(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from concurrent.futures import wait
        from fake_controller import FakeController

        fake = FakeController()
        rc = fake.connect()
        calls = [rc[0].apply_async(abs, -1) for _ in range(3)]
        for ar in calls:
            fake.fail(ar.first, ValueError("bad"))
        assert wait(calls, 10).not_done == set()
        waiting = rc[0].apply_async(abs, -1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
