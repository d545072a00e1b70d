"""AsyncResults in asyncio: the I/O thread wakes the event loop; no thread waits. The only file that imports asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcviews.client.results import AsyncResult


async def get_async(result: AsyncResult) -> Any:
    """Await its end, and return or raise what `AsyncResult.get` does. Cancelled, it cancels the result."""
    ended = asyncio.Event()
    wake = _make_waker(ended)
    result.add_quick_callback(lambda _: wake())
    try:
        await ended.wait()
    except asyncio.CancelledError:
        result.cancel()
        raise
    return result.get(0)


async def wait_until_async(result: AsyncResult, predicate: Callable[[], bool]) -> None:
    """Await a condition that changes when requests of `result` end, or its end; see `AsyncResult.wait_until`."""
    changed = asyncio.Event()
    with result.listening(_make_waker(changed)):
        while not (predicate() or result.done()):
            await changed.wait()
            changed.clear()


def _make_waker(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:
            pass  # the event loop has been closed, and with it whoever waited

    return wake
