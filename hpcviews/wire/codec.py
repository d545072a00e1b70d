"""Messages to header bytes and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from hpcviews.errors import ProtocolError, VersionMismatch
from hpcviews.wire import messages as m

HEADER_BYTES_MAX = 256 * 2**20
"""A header holds at most what one batch collects: small payloads. Anything larger is not ours."""

_PREFIX = bytes([m.PROTOCOL])
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M", bound=m.Message)


def encode(messages: Sequence[m.Message]) -> bytes:
    """The header of a zmq message that carries `messages` in this order.

    Text that is not Unicode (Python's form of a file name that is not UTF-8, printed or in an error) arrives with
    backslashes.
    """
    try:
        return _PREFIX + _encoder.encode(messages)
    except UnicodeEncodeError:
        # Here and not where text comes in: that is in a dozen places, and each one missed ends its process.
        return _PREFIX + _encoder.encode(_escape(msgspec.to_builtins(messages, builtin_types=(bytes,))))


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return [_escape(item) for item in value] if isinstance(value, list) else value


class Decoder(Generic[M]):
    """Headers that one kind of peer receives."""

    def __init__(self, union: Any):
        self._decode = msgspec.msgpack.Decoder(list[union]).decode

    def decode(self, header: bytes | memoryview, frame_count: int) -> list[M]:
        """The messages of a header that came with `frame_count` frames behind it.

        Raises:
            VersionMismatch: The header is of another protocol.
            ProtocolError: It is not a header, or the frames do not fit it.
        """
        if not len(header):
            raise ProtocolError("empty header")
        if len(header) > HEADER_BYTES_MAX:
            raise ProtocolError(f"header of {len(header)} bytes")
        if header[0] != m.PROTOCOL:
            raise VersionMismatch(
                f"the peer speaks protocol {header[0]}, this hpcviews speaks protocol {m.PROTOCOL}; "
                "install the same version of hpcviews on both sides"
            )
        try:
            decoded: list[M] = self._decode(memoryview(header)[1:])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
            raise ProtocolError(f"not a message: {error}") from None
        wanted = 0
        for message in decoded:
            if isinstance(message, m.Carrier):
                if message.frames < 0:
                    raise ProtocolError("negative number of frames")
                wanted += message.frames
        if wanted != frame_count:
            raise ProtocolError(f"{frame_count} frames came where the header names {wanted}")
        return decoded


def controller_decoder() -> Decoder[m.Message]:
    """For headers that arrive at the controller."""
    return Decoder(m.ToController)


def client_decoder() -> Decoder[m.Message]:
    """For headers that arrive at a client."""
    return Decoder(m.ToClient)


def engine_decoder() -> Decoder[m.Message]:
    """For headers that arrive at an engine."""
    return Decoder(m.ToEngine)
