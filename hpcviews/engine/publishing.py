"""What user code on an engine may tell the client while it runs, beside printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpcviews.errors import UsageError

_publish: Callable[[str, dict[str, Any]], None] | None = None


def set_publisher(publish: Callable[[str, dict[str, Any]], None]) -> None:
    """This process is an engine, and this is how it tells."""
    global _publish
    _publish = publish


def publish_data(data: Mapping[str, Any]) -> None:
    """Hand values to the client while a call still runs: they appear in its ``AsyncResult.data``, the latest of each
    name. Call it in functions and code that engines run.

    Args:
        data: Values by name; what can be pickled.
    Raises:
        UsageError: This is no engine.
        TypeError: Not a mapping.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"publish_data() needs a dict, not {type(data)}")
    if _publish is None:
        raise UsageError("publish_data() is for code that engines run, and this process is no engine")
    _publish("data", dict(data))
