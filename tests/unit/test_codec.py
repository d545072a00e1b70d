"""Headers: what is accepted, and that nothing malformed gets past the decoder."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcviews.errors import ProtocolError, VersionMismatch
from hpcviews.wire import messages as m
from hpcviews.wire.codec import client_decoder, controller_decoder, encode, engine_decoder

HELLO = m.ClientHello("1", "3.11", "s", "host", 1)


def test_batch_keeps_its_order() -> None:
    batch = [HELLO, m.Task(b"x", 0, 1, "apply", b"", [1, 2], 3), m.Abort([1]), m.StatusQuery(7)]
    assert controller_decoder().decode(encode(batch), 0) == batch


def test_frames_must_fit_the_header() -> None:
    header = encode([m.Done(b"", 2, 1, 0.0, 0.0, None)])
    controller_decoder().decode(header, 2)
    for count in (0, 1, 3):
        with pytest.raises(ProtocolError, match=f"{count} frames came where the header names 2"):
            controller_decoder().decode(header, count)


def test_negative_frame_count_is_refused() -> None:
    with pytest.raises(ProtocolError):
        controller_decoder().decode(encode([m.Done(b"", -1, 1, 0.0, 0.0, None)]), 0)


def test_other_protocol_is_named_on_both_sides() -> None:
    header = bytes([m.PROTOCOL + 1]) + encode([HELLO])[1:]
    with pytest.raises(VersionMismatch, match=f"protocol {m.PROTOCOL + 1}.*protocol {m.PROTOCOL}"):
        controller_decoder().decode(header, 0)


def test_messages_of_another_direction_are_refused() -> None:
    with pytest.raises(ProtocolError):
        client_decoder().decode(encode([HELLO]), 0)
    with pytest.raises(ProtocolError):
        engine_decoder().decode(encode([m.StopCluster()]), 0)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    for data in (garbage, bytes([m.PROTOCOL]) + garbage):
        try:
            controller_decoder().decode(data, 0)
        except (ProtocolError, VersionMismatch):
            pass


def test_truncated_and_flipped_headers_are_refused_or_decoded_never_a_crash() -> None:
    header = encode([HELLO, m.Task(b"xyz", 1, 1, "apply", b"d", None, 0)])
    chance = random.Random(1)
    for cut in range(len(header)):
        with pytest.raises(ProtocolError):
            controller_decoder().decode(header[:cut], 1)
    for _ in range(500):
        flipped = bytearray(header)
        flipped[chance.randrange(1, len(flipped))] ^= 1 << chance.randrange(8)
        try:
            controller_decoder().decode(bytes(flipped), 1)
        except ProtocolError:
            pass


def test_text_that_is_not_unicode_arrives_with_backslashes() -> None:
    told = m.ErrorInfo("OSError", "no file 'a\udc80'", "", False)
    batch = [m.RunOutput(1, "stdout", "a\udc80b\n"), m.Done(b"\xff", 1, 1, 0.0, 0.0, told)]
    output, done = controller_decoder().decode(encode(batch), 1)
    assert output == m.RunOutput(1, "stdout", "a\\udc80b\n")
    assert isinstance(done, m.Done) and done.data == b"\xff" and done.error is not None
    assert done.error.evalue == "no file 'a\\udc80'"
