"""What requests write, display and publish, at the client: in order, live and later, bounded."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fake_controller import FakeController

from hpcviews.client import output
from hpcviews.client.client import Client
from hpcviews.client.results import AsyncResult
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m
from hpcviews.wire.payload import dumps


def publish(fake: FakeController, seq: int, kind: str, content: Any, engine: int = 0) -> None:
    payload = dumps(content)
    fake.send(m.Published(payload.data, len(payload.frames), seq, engine, kind), frames=payload.frames)


def display(fake: FakeController, seq: int, text: str, engine: int = 0) -> None:
    publish(fake, seq, "display", {"data": {"text/plain": text}, "metadata": {}, "transient": {}}, engine)


def execute(fake: FakeController, rc: Client, targets: Any = 0) -> AsyncResult:
    ar: AsyncResult = rc.direct_view(targets).apply_async(abs, 1)
    fake.take_call(m.Request)
    return ar


class Heard:
    """What a callback was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, str, Any]] = []
        self.threads: set[str] = set()

    def __call__(self, index: int, engine: int, kind: str, content: Any) -> None:
        self.threads.add(threading.current_thread().name)
        shown = content["data"]["text/plain"] if kind == "display" else content
        self.calls.append((index, engine, kind, shown))

    def wait(self, count: int) -> list[tuple[int, int, str, Any]]:
        wait_until(lambda: len(self.calls) >= count, 5, f"{count} calls")
        return self.calls


def test_displays_are_in_the_metadata_in_order(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    display(fake, ar.first, "first")
    display(fake, ar.first, "second")
    wait_until(lambda: len(ar.outputs) == 2, 5, "what was displayed while it runs")
    fake.answer(ar.first, 1)
    assert ar.get(5) == 1
    assert [entry["data"] for entry in ar.metadata.outputs] == [{"text/plain": "first"}, {"text/plain": "second"}]


def test_big_displays_travel_in_frames_beside_results(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    shown, value = dumps({"data": {"x": np.arange(100_000)}, "metadata": {}}), dumps(np.ones(100_000))
    fake.send(
        m.Published(shown.data, len(shown.frames), ar.first, 0, "display"),
        m.Result(value.data, len(value.frames), ar.first, 0, 1.0, 2.0, None),
        frames=[*shown.frames, *value.frames],
    )
    assert ar.get(5).sum() == 100_000
    assert ar.outputs[0]["data"]["x"][-1] == 99_999


def test_callback_gets_what_came_before_it_first(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    fake.send(m.Output(ar.first, 0, "stdout", "a"), m.Output(ar.first, 0, "stdout", "b"))
    display(fake, ar.first, "figure")
    fake.send(m.Output(ar.first, 0, "stderr", "c"))
    wait_until(lambda: ar.stderr == "c", 5, "the text")
    heard = Heard()
    ar.add_output_callback(heard)
    fake.send(m.Output(ar.first, 0, "stdout", "d"))
    assert heard.wait(4) == [
        (0, 0, "stdout", "ab"),
        (0, 0, "display", "figure"),
        (0, 0, "stderr", "c"),
        (0, 0, "stdout", "d"),
    ]
    assert heard.threads == {"hpcviews-callbacks"}
    fake.answer(ar.first)
    ar.get(5)


def test_callback_counts_requests_also_of_joined_results(fake: FakeController, rc: Client) -> None:
    one, both = execute(fake, rc, 0), execute(fake, rc, [0, 1])
    heard = Heard()
    AsyncResult.join(one, both.split()[1]).add_output_callback(heard)
    fake.send(m.Output(both.first, 0, "stdout", "not this one"))
    fake.send(m.Output(both.first + 1, 1, "stdout", "x"), m.Output(one.first, 0, "stdout", "y"))
    assert heard.wait(2) == [(1, 1, "stdout", "x"), (0, 0, "stdout", "y")]


def test_removed_callback_is_not_called_again(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    heard, stays = Heard(), Heard()
    ar.add_output_callback(heard)
    ar.add_output_callback(stays)
    fake.send(m.Output(ar.first, 0, "stdout", "x"))
    heard.wait(1)
    ar.remove_output_callback(heard)
    fake.send(m.Output(ar.first, 0, "stdout", "y"))
    stays.wait(2)
    assert len(heard.calls) == 1


def test_published_data_is_merged_live(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    assert ar.data == {}
    publish(fake, ar.first, "data", {"step": 1, "loss": 0.5})
    wait_until(lambda: ar.data == {"step": 1, "loss": 0.5}, 5, "the data")
    publish(fake, ar.first, "data", {"step": 2})
    wait_until(lambda: ar.data == {"step": 2, "loss": 0.5}, 5, "the data")
    fake.answer(ar.first)
    ar.get(5)
    assert ar.metadata["data"] == {"step": 2, "loss": 0.5}


def test_published_data_does_not_pile_up_unread(fake: FakeController, rc: Client) -> None:
    ar = execute(fake, rc)
    for step in range(100):
        publish(fake, ar.first, "data", {"step": step})
    fake.answer(ar.first)
    ar.get(5)
    kept = ar.slots[0][0]._outputs[0]
    wait_until(lambda: not kept._unread, 5, "the data to be merged without anybody's looking")
    assert ar.data == {"step": 99}


def test_displays_are_bounded(fake: FakeController, rc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "DISPLAY_BYTES_MAX", 3_000)
    ar = execute(fake, rc)
    heard = Heard()
    ar.add_output_callback(heard)
    for number in range(5):
        display(fake, ar.first, f"{number}" * 1_000)
    heard.wait(5)  # who watches gets all of them
    fake.answer(ar.first)
    ar.get(5)
    texts = [entry["data"]["text/plain"] for entry in ar.outputs]
    assert [text[0] for text in texts[:-1]] == ["0", "1"]
    assert texts[-1].startswith("[3 more displays were dropped")
