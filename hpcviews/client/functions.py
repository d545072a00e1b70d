"""Functions are sent once: which ones the controller has from this client.

Pure bookkeeping. What `take` returns must enter the outgoing stream ahead of the request that names the function,
before anybody else calls `take`; the connection's lock sees to that.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from hpcviews.client.outgoing import Parcel
from hpcviews.ids import Digest
from hpcviews.wire import messages as m
from hpcviews.wire.payload import Payload, digest

FUNCTIONS_MAX = 1024
"""How many functions of a client the controller and the engines keep. Lambdas made in a loop that differ in what
they close over are all different functions; an analysis has tens of others."""

FUNCTION_BYTES_MAX = 256 * 2**20
"""And how many bytes of them: a closure over a big array is a big function."""


class PickledFunction(NamedTuple):
    """A serialized function and its name on the wire."""

    payload: Payload
    digest: Digest


def name_function(payload: Payload) -> PickledFunction:
    """Name a serialized function."""
    return PickledFunction(payload, digest(payload))


class SentFunctions:
    """Least recently used digests that the controller has from us, bounded by count and by bytes."""

    def __init__(self, count_max: int = FUNCTIONS_MAX, bytes_max: int = FUNCTION_BYTES_MAX):
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._sent: OrderedDict[Digest, int] = OrderedDict()
        self._bytes = 0

    def take(self, function: PickledFunction) -> Parcel | None:
        """What must be sent before a request may name `function`; None if the controller has it."""
        if function.digest in self._sent:
            self._sent.move_to_end(function.digest)
            return None
        data, frames = function.payload
        messages: list[m.Message] = [m.Function(data, len(frames), function.digest)]
        size = function.payload.nbytes
        self._sent[function.digest] = size
        self._bytes += size
        # The newest stays whatever its size: the request behind it needs it.
        while len(self._sent) > self._count_max or (self._bytes > self._bytes_max and len(self._sent) > 1):
            oldest, size = self._sent.popitem(last=False)
            self._bytes -= size
            messages.append(m.ForgetFunction(oldest))
        return Parcel(messages, frames)

    def clear(self) -> None:
        """The connection is a new one: the controller has none."""
        self._sent.clear()
        self._bytes = 0
