"""Rooms, segments and handles: who shares memory, when a segment is written again, and that nothing is left."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcviews.errors import SerializationError
from hpcviews.testing.wait import wait_until
from hpcviews.wire import pool as pool_module
from hpcviews.wire.payload import ZERO_COPY_BYTES_MIN, Payload, dumps, loads
from hpcviews.wire.pool import KEPT_BYTES_MAX, KEPT_S, Pool, lend
from hpcviews.wire.room import Room, join_room, sweep_rooms
from hpcviews.wire.shared import (
    HANDLE_BYTES_MAX,
    SHARED_MEMORY,
    Handle,
    count_bytes,
    has_handles,
    map_handles,
    parse_handle,
    render_room_name,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Frame:
    """What of a zmq.Frame this needs."""

    def __init__(self, data: bytes):
        self.buffer = memoryview(data)

    def __len__(self) -> int:
        return len(self.buffer)


@pytest.fixture
def generation() -> Iterator[str]:
    name = os.urandom(8).hex()
    yield name
    gc.collect()
    left = [path.name for path in SHARED_MEMORY.glob(f"{render_room_name(name)}*")]
    assert not left, f"left in shared memory: {left}"


@pytest.fixture
def room(generation: str) -> Iterator[Room]:
    joined = join_room(generation)
    assert joined is not None
    yield joined
    joined.leave()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(room: Room, clock: Clock) -> Iterator[Pool]:
    made = Pool(room, clock=clock)
    yield made
    made.check()
    made.close()


def share(pool: Pool, obj: Any, least: int = 0) -> Payload:
    return dumps(obj, find_pool=lambda: pool, share_bytes_min=least)


def receive(payload: Payload) -> Any:
    return loads(payload.data, payload.frames)


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def list_segments(pool: Pool) -> list[str]:
    return sorted(path.name for path in SHARED_MEMORY.glob(f"{pool.room.name}-{pool.party}-*"))


# ---------------------------------------------------------------- rooms


def test_parties_of_one_generation_are_in_one_room_and_others_are_not(generation: str, room: Room) -> None:
    other = join_room(generation)
    stranger = join_room(os.urandom(8).hex())
    assert other is not None and stranger is not None
    assert other.token == room.token != stranger.token
    other.leave()
    stranger.leave()


def test_last_party_to_leave_removes_everything(generation: str) -> None:
    first, second = join_room(generation), join_room(generation)
    assert first is not None and second is not None
    segment = SHARED_MEMORY / f"{first.name}-{'a' * 16}-0"
    segment.touch()
    first.leave()
    first.leave()
    assert segment.exists(), "somebody is still there"
    second.leave()
    assert not segment.exists() and not (SHARED_MEMORY / first.name).exists()


def test_clearing_a_party_leaves_the_others_alone(room: Room) -> None:
    names = [f"{room.name}-{'a' * 16}-0", f"{room.name}-{'a' * 16}-1", f"{room.name}-{'b' * 16}-0"]
    for name in names:
        (SHARED_MEMORY / name).touch()
    assert room.clear("a" * 16) == 2
    assert [(SHARED_MEMORY / name).exists() for name in names] == [False, False, True]


def test_a_room_of_the_dead_is_swept_and_one_of_the_living_is_not(generation: str, room: Room) -> None:
    theirs = os.urandom(8).hex()
    code = (
        "import os, sys; from hpcviews.wire.room import join_room; room = join_room(sys.argv[1]); "
        "open(f'/dev/shm/{room.name}-{16 * \"c\"}-0', 'w').close(); print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, theirs], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        sweep_rooms()
        assert len(list(SHARED_MEMORY.glob(f"{render_room_name(theirs)}*"))) == 2
        process.kill()
    sweep_rooms()
    assert not list(SHARED_MEMORY.glob(f"{render_room_name(theirs)}*"))
    assert (SHARED_MEMORY / room.name).exists()


def test_a_segment_without_a_room_is_swept(generation: str) -> None:
    stray = SHARED_MEMORY / f"{render_room_name(generation)}-{'d' * 16}-3"
    stray.touch()
    assert sweep_rooms() >= 1
    assert not stray.exists()


def test_no_directory_means_no_room(tmp_path: Path, generation: str) -> None:
    assert join_room(generation, tmp_path / "missing") is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_in_another_room_and_cannot_map_ours(generation: str, pool: Pool) -> None:
    payload = share(pool, np.ones(300_000))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "failed"
        try:
            os.setgid(54321)
            os.setuid(54321)
            room = join_room(generation)
            assert room is not None and room.token != pool.room.token
            sweep_rooms()
            try:
                receive(payload)
            except SerializationError:
                said = "refused"
            room.leave()
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"refused"
    os.close(reading)
    os.close(writing)
    assert receive(payload)[0] == 1


# ---------------------------------------------------------------- payloads in segments


def test_buffers_from_the_threshold_on_are_shared_and_smaller_ones_are_not(pool: Pool) -> None:
    big, small = np.arange(200_000.0), np.arange(20_000.0)
    payload = share(pool, [big, small], big.nbytes)
    assert [len(frame) <= HANDLE_BYTES_MAX for frame in payload.frames] == [True, False]
    assert has_handles(payload.frames)
    assert payload.full_nbytes >= big.nbytes + small.nbytes > payload.nbytes
    assert count_bytes(payload.frames) == (big.nbytes + small.nbytes, big.nbytes)
    back = receive(payload)
    assert (back[0] == big).all() and (back[1] == small).all()


def test_received_arrays_are_writable_private_and_unaffected_by_the_sender(pool: Pool) -> None:
    array = np.arange(100_000.0)
    payload = share(pool, array)
    array[:] = -1  # the copy is made: the sender may
    one, two = receive(payload), receive(payload)
    one[:] = 5
    assert two[1] == 1 and receive(payload)[1] == 1
    assert one.flags.writeable and two.flags.writeable


@pytest.mark.parametrize(
    "name", ["columns", "steps", "reversed", "transposed", "broadcast", "records", "wide rows", "F"]
)
def test_strided_arrays_arrive_as_they_were(pool: Pool, name: str) -> None:
    base = np.arange(600 * 700.0).reshape(600, 700)
    array = {
        "columns": base[:, ::2],
        "steps": np.arange(900_000)[::3],
        "reversed": base[::-1, 1:],
        "transposed": np.arange(60 * 70 * 80.0).reshape(60, 70, 80).transpose(1, 0, 2),
        "broadcast": np.broadcast_to(np.arange(1000.0), (300, 1000)),
        "records": np.zeros(50_000, dtype=[("a", "i4"), ("t", "M8[s]")])[::2],
        "wide rows": np.arange(3 * 400_000.0).reshape(3, 400_000)[:, ::2],
        "F": np.asfortranarray(base),
    }[name]
    payload = share(pool, {"x": array, "y": array})
    assert has_handles(payload.frames)
    back = receive(payload)["x"]
    assert back.dtype == array.dtype and (back == array).all() and back.flags.writeable
    assert name != "F" or back.flags.f_contiguous


def test_many_buffers_of_one_payload_share_a_segment_and_die_one_by_one(pool: Pool) -> None:
    arrays = [np.full(30_000 + i, i) for i in range(20)]
    payload = share(pool, arrays)
    assert len(list_segments(pool)) == 1
    back = receive(payload)
    kept = back[7]
    del back
    assert (kept == arrays[7]).all()


def test_maps_keep_no_descriptors(pool: Pool) -> None:
    payload = share(pool, [np.zeros(20_000)] * 1)
    before = count_files()
    kept = [receive(payload) for _ in range(50)]
    assert count_files() == before
    assert len(kept) == 50


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"hpcviews-0-../../etc/passwd 0 1", f"hpcviews-{os.geteuid() + 1}-".encode() + b"a" * 16]
)
def test_what_is_no_handle_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(SerializationError, match="no shared memory of ours"):
        parse_handle(Frame(data))


def test_a_handle_that_reaches_beyond_its_segment_is_refused(pool: Pool) -> None:
    payload = share(pool, np.zeros(20_000))
    handle = parse_handle(payload.frames[0])
    assert handle == parse_handle(Frame(handle.render()))
    wrong = Handle(handle.segment, handle.number, handle.offset, handle.length + 10_000_000)
    with pytest.raises(SerializationError, match="not what its sender says"):
        map_handles([Frame(wrong.render())])


def test_a_segment_that_is_gone_says_so(pool: Pool) -> None:
    payload = share(pool, np.zeros(20_000))
    pool.close()
    with pytest.raises(SerializationError, match="is gone: its sender was lost"):
        receive(payload)


def test_no_frame_can_be_taken_for_a_handle() -> None:
    assert HANDLE_BYTES_MAX < ZERO_COPY_BYTES_MIN
    assert not has_handles(dumps([np.zeros(ZERO_COPY_BYTES_MIN, np.uint8), bytes(100_000)]).frames)


# ---------------------------------------------------------------- the life of segments


def test_a_segment_is_written_again_only_when_nobody_maps_it(pool: Pool) -> None:
    first = share(pool, np.full(50_000, 1.0))
    mapped = receive(first)
    name = list_segments(pool)
    del first
    second = share(pool, np.full(50_000, 2.0))
    assert len(list_segments(pool)) == 2, "a receiver still has a map of the first"
    assert mapped.sum() == 50_000
    del mapped, second
    third = share(pool, np.full(50_000, 3.0))
    assert len(list_segments(pool)) == 2 and name[0] in list_segments(pool)
    assert receive(third)[0] == 3


def test_a_derived_array_keeps_the_map_and_so_the_segment(pool: Pool) -> None:
    payload = share(pool, np.arange(50_000.0))
    part = receive(payload)[10:20].reshape(2, 5)
    del payload
    for value in range(3):
        share(pool, np.full(50_000, value, float))
    assert part.sum() == sum(range(10, 20))


def test_a_lent_segment_stays_until_every_request_has_ended(pool: Pool) -> None:
    payload = share(pool, np.full(50_000, 1.0))
    lend([4, 5], payload.frames)
    data, frames = payload.data, [Frame(frame.bytes) for frame in payload.frames]  # as the receiver has them
    del payload
    assert pool.is_lending
    pool.give_back(4)
    share(pool, np.full(50_000, 2.0))
    assert loads(data, frames)[0] == 1
    pool.give_back(5)
    assert not pool.is_lending
    share(pool, np.full(50_000, 3.0))
    share(pool, np.full(50_000, 4.0))
    assert loads(data, frames)[0] != 1, "it is written again"


def test_a_payload_that_is_never_sent_gives_its_segment_back(pool: Pool) -> None:
    for _ in range(10):
        share(pool, np.zeros(50_000))
    assert len(list_segments(pool)) == 1


def test_kept_segments_expire(pool: Pool, clock: Clock) -> None:
    share(pool, np.zeros(50_000))
    assert pool.expire() == KEPT_S
    clock.now += KEPT_S / 2
    assert pool.expire() == KEPT_S / 2 and len(list_segments(pool)) == 1
    clock.now += KEPT_S
    assert pool.expire() is None
    assert list_segments(pool) == []


def test_kept_segments_are_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "KEPT_BYTES_MAX", 1_000_000)
    payloads = [share(pool, np.zeros(50_000)) for _ in range(5)]
    assert len(list_segments(pool)) == 5
    del payloads
    assert len(list_segments(pool)) == 2
    assert KEPT_BYTES_MAX >= 1_000_000


def test_a_small_array_is_not_put_into_a_big_warm_segment(pool: Pool) -> None:
    share(pool, np.zeros(500_000))
    payload = share(pool, np.zeros(20_000))
    assert len(list_segments(pool)) == 2
    assert receive(payload).size == 20_000


def test_closing_removes_all_but_what_requests_still_need(pool: Pool) -> None:
    lent, other = share(pool, np.zeros(50_000)), share(pool, np.zeros(60_000))
    lend([1], lent.frames)
    names = list_segments(pool)
    pool.close(leave_lent=True)
    assert list_segments(pool) == names[:1]
    assert receive(lent).size == 50_000
    del lent, other
    assert list_segments(pool) == names[:1], "the controller sees to it"
    assert pool.room.clear(pool.party) == 1
    assert not has_handles(share(pool, np.zeros(50_000)).frames), "a closed pool has no segments to give"


def test_without_room_buffers_travel_as_frames_and_it_is_said_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    array = np.arange(50_000.0)
    for obj in (array, array[::2], [array, array]):
        payload = share(pool, obj)
        assert not has_handles(payload.frames)
        assert np.array_equal(receive(payload), obj)
    assert len(caplog.records) == 1 and "--shm-size" in caplog.text
    assert list_segments(pool) == []


def test_a_forked_child_leaves_the_segments_alone(pool: Pool) -> None:
    payload = share(pool, np.zeros(50_000))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = share(pool, np.zeros(50_000))
            del payload
            gc.collect()
            pool.close()
            code = int(has_handles(mine.frames))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert receive(payload).size == 50_000


def test_wakes_who_is_to_expire(room: Room) -> None:
    woken: list[int] = []
    pool = Pool(room, lambda: woken.append(1))
    share(pool, np.zeros(50_000))
    wait_until(lambda: woken, 5, "the pool to wake its owner")
    pool.close()
