"""AsyncResults in asyncio: awaited and iterated, in any event loop, without a thread of their own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_controller import FakeController

from hpcviews.client.awaiting import wait_until_async
from hpcviews.client.client import Client
from hpcviews.client.results import AsyncResult
from hpcviews.errors import CompositeError, ControllerLost, RemoteError
from hpcviews.wire import messages as m


def double(x: int) -> int:
    return 2 * x


def soon(action: Callable[[], Any]) -> None:
    """Do it in the next turn of the event loop, when whoever calls this waits."""
    asyncio.get_running_loop().call_soon(action)


def test_await_gives_what_get_gives(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> Any:
        soon(lambda: fake.answer(ar.first, "value"))
        return await ar

    for _ in range(2):  # another loop each time
        ar = rc[0].apply_async(double, 1)
        assert asyncio.run(use(ar)) == "value" and ar.get() == "value"


def test_await_raises_what_get_raises(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult, **kwargs: Any) -> Any:
        soon(lambda: fake.fail(ar.first, ValueError("bad")))
        return await ar

    with pytest.raises(RemoteError, match="ValueError: bad"):
        asyncio.run(use(rc[0].apply_async(double, 1)))
    with pytest.raises(CompositeError):
        asyncio.run(use(rc[[0]].apply_async(double, 1)))


def test_awaiting_what_is_done_is_fine_again_and_again(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> Any:
        return await ar, await ar, await asyncio.gather(ar, ar)

    ar = rc[:].apply_async(double, 1)
    fake.answer(ar.first, "a"), fake.answer(ar.first + 1, "b")
    assert ar.wait(10)
    assert asyncio.run(use(ar)) == (["a", "b"], ["a", "b"], [["a", "b"], ["a", "b"]])


def test_many_awaits_need_no_threads(fake: FakeController, rc: Client) -> None:
    calls = [rc[0].apply_async(double, i) for i in range(200)]

    async def use() -> list[Any]:
        async def one(ar: AsyncResult) -> Any:
            return await ar

        tasks = [asyncio.ensure_future(one(ar)) for ar in calls]
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        for ar in calls:
            fake.answer(ar.first, ar.first)
        return await asyncio.gather(*tasks)

    threads = threading.active_count()
    assert asyncio.run(use()) == [ar.first for ar in calls]
    assert threading.active_count() == threads


def test_values_are_iterated_as_they_come(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult, answers: list[Callable[[], None]]) -> list[Any]:
        values = []
        soon(answers.pop(0))
        async for value in ar:
            values.append(value)
            if answers:
                soon(answers.pop(0))
        return values

    ar = rc[:].apply_async(double, 4)
    first = ar.first
    answers = [lambda: fake.answer(first, "a"), lambda: fake.answer(first + 1, "b")]
    assert asyncio.run(use(ar, answers)) == ["a", "b"]
    tasks = rc.load_balanced_view().map(double, range(4), chunksize=2, ordered=False)
    answers = [lambda: fake.answer(tasks.first + 1, ["c", "d"]), lambda: fake.answer(tasks.first, ["a", "b"])]
    assert asyncio.run(use(tasks, answers)) == ["c", "d", "a", "b"]
    with pytest.raises(TypeError, match="not iterable"):
        rc[0].apply_async(double, 1).__aiter__()


def test_failure_is_raised_in_the_iteration(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> list[Any]:
        return [value async for value in ar]

    ar = rc[:].apply_async(double, 4)
    fake.answer(ar.first, "a"), fake.fail(ar.first + 1, ValueError("bad"))
    with pytest.raises(CompositeError, match="bad"):
        asyncio.run(use(ar))


def test_cancelled_task_cancels_what_it_awaits(fake: FakeController, rc: Client) -> None:
    async def give_up(ar: AsyncResult) -> None:
        task = asyncio.ensure_future(asyncio.wait_for(ar, None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ar = rc[0].apply_async(double, 1)
    fake.take_call(m.Request)
    asyncio.run(give_up(ar))
    assert ar.cancelled() and fake.take(m.Abort).seqs == [ar.first]


def test_cancelling_the_result_ends_the_await(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> None:
        soon(ar.cancel)
        with pytest.raises(concurrent.futures.CancelledError):  # not asyncio's: the task itself goes on
            await ar

    asyncio.run(use(rc[0].apply_async(double, 1)))


def test_shield_keeps_the_result(fake: FakeController, rc: Client) -> None:
    async def give_up(ar: AsyncResult) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(ar)), 0.01)

    ar = rc[0].apply_async(double, 1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, give_up(ar)).result(10)
    assert ar.done() or not ar.cancelled()


def test_loop_that_ends_first_is_no_harm(fake: FakeController, rc: Client) -> None:
    async def begin(ar: AsyncResult) -> Coroutine[Any, Any, None]:
        waiting = wait_until_async(ar, lambda: False)
        waiting.send(None)
        return waiting

    ar = rc[:].apply_async(double, 1)
    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(begin(ar))
    loop.close()
    fake.answer(ar.first, "a"), fake.answer(ar.first + 1, "b")
    assert ar.get(10) == ["a", "b"]
    waiting.close()


def test_lost_connection_ends_the_await(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> Any:
        soon(fake.die)
        return await ar

    with pytest.raises(ControllerLost):
        asyncio.run(use(rc[0].apply_async(double, 1)))


def test_awaited_results_are_freed(fake: FakeController, rc: Client) -> None:
    async def use(ar: AsyncResult) -> Any:
        return await ar

    ar = rc[0].apply_async(double, 1)
    fake.answer(ar.first, "value")
    asyncio.run(use(ar))
    gone = weakref.ref(ar)
    del ar
    gc.collect()
    assert gone() is None
