"""What the controller, and the client's choice of a plane, make of shared memory: pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from core_world import PYTHON, VERSION, World, done, make_info, request, task

from hpcviews.client.planes import choose_pool, find_fault
from hpcviews.controller.core import Identity
from hpcviews.controller.sharing import Unshared
from hpcviews.controller.state import Route
from hpcviews.errors import PlaneUnavailable
from hpcviews.wire import messages as m
from hpcviews.wire.pool import Pool
from hpcviews.wire.room import join_room
from hpcviews.wire.shared import Handle

HERE, THERE = "room-a", "room-b"
HANDLE = Handle("hpcviews-0-aaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-0", 0, 0, 2**20).render()
"""A frame: what of zmq's frames the core looks at is their length."""


class SharingWorld(World):
    def __init__(self, controller_room: str = HERE) -> None:
        super().__init__()
        self.core.identity = Identity("test", "g1", VERSION, PYTHON, "node", 1, 0.0, room=controller_room)

    def add_client_in(self, room: str, name: str = "A") -> Route:
        route = f"client-{name}".encode()
        self.say(route, m.ClientHello(VERSION, PYTHON, name * 16, "node", 2, room, f"party-{name}"))
        assert self.out.take(route, m.Welcome).room == self.core.identity.room
        return route

    def add_engine_in(self, room: str, index: int) -> Route:
        route = f"engine-0.{index}.0".encode()
        info = msgspec.structs.replace(make_info(index), room=room)
        self.say(route, m.EngineHello(VERSION, PYTHON, info, "", f"party-{index}"))
        self.out.take(route, m.EngineWelcome)
        return route

    def take_run(self, route: Route) -> tuple[m.Run, list[Any]]:
        ((run, frames),) = self.out.take_all(route)
        assert isinstance(run, m.Run)
        return run, frames


def shared_request(seq: int, targets: list[int]) -> m.Request:
    return msgspec.structs.replace(request(seq, targets), frames=1, may_share=True)


def shared_done(key: int) -> m.Done:
    return msgspec.structs.replace(done(key), frames=1)


def make_world(client_room: str = HERE, engine_rooms: tuple[str, ...] = (HERE,), controller_room: str = HERE) -> Any:
    world = SharingWorld(controller_room)
    world.start_set(len(engine_rooms))
    client = world.add_client_in(client_room)
    engines = [world.add_engine_in(room, index) for index, room in enumerate(engine_rooms)]
    world.forget_news(client)
    return world, client, engines


# ---------------------------------------------------------------- the controller


def test_handles_are_forwarded_to_neighbours_and_bytes_to_strangers() -> None:
    world, client, (near, far) = make_world(engine_rooms=(HERE, THERE))
    world.say(client, shared_request(0, [0, 1]), frames=[HANDLE])
    run, frames = world.take_run(near)
    assert run.may_share and frames == [HANDLE]
    run, frames = world.take_run(far)
    assert not run.may_share, "the client cannot open what this engine would write"
    assert frames == [Unshared(HANDLE)]


def test_a_result_is_delivered_when_its_client_has_mapped_it() -> None:
    world, client, (engine,) = make_world()
    world.say(client, shared_request(0, [0]), frames=[HANDLE])
    run, _ = world.take_run(engine)
    world.say(engine, shared_done(run.key), frames=[HANDLE])
    ((result, frames),) = world.out.take_all(client)
    assert isinstance(result, m.Result) and frames == [HANDLE]
    assert not world.out.take_all(engine)
    world.say(client, m.Mapped([0, 77]))
    assert world.out.take(engine, m.Delivered).keys == [run.key]


def test_a_result_that_nobody_waits_for_is_given_back_at_once() -> None:
    world, client, (engine,) = make_world()
    world.say(client, shared_request(0, [0]), frames=[HANDLE])
    run, _ = world.take_run(engine)
    world.say(client, m.ClientLeave())
    world.say(engine, shared_done(run.key), frames=[HANDLE])
    assert world.out.take(engine, m.Delivered).keys == [run.key]
    world.say(engine, shared_done(999), frames=[HANDLE])
    assert world.out.take(engine, m.Delivered).keys == [999]


def test_a_failure_that_is_tried_again_gives_its_segment_back() -> None:
    world, client, (engine,) = make_world()
    world.say(client, msgspec.structs.replace(task(0, retries=1), may_share=True))
    run, _ = world.take_run(engine)
    failed = msgspec.structs.replace(done(run.key, error="ValueError"), frames=1)
    world.say(engine, failed, frames=[HANDLE])
    assert world.out.take(engine, m.Delivered).keys == [run.key]
    assert world.take_run(engine)[0].key != run.key


def test_a_lost_client_gives_back_what_it_was_to_map_and_its_own_segments_go() -> None:
    world, client, (engine,) = make_world()
    world.say(client, shared_request(0, [0]), frames=[HANDLE])
    run, _ = world.take_run(engine)
    world.say(engine, shared_done(run.key), frames=[HANDLE])
    world.disconnect(client)
    assert world.out.take(engine, m.Delivered).keys == [run.key]
    assert world.out.cleared == ["party-A"]


def test_segments_of_a_client_that_left_politely_stay_until_its_requests_have_run() -> None:
    world, client, (engine,) = make_world()
    world.say(client, shared_request(0, [0]), shared_request(1, [0]), frames=[HANDLE])
    runs = [message.key for message, _ in world.out.take_all(engine)]
    world.say(client, m.ClientLeave())
    world.say(engine, done(runs[0]))
    assert world.out.cleared == []
    world.say(engine, done(runs[1]))
    assert world.out.cleared == ["party-A"]


def test_segments_of_a_lost_engine_stay_until_its_results_are_mapped() -> None:
    world, client, (engine,) = make_world()
    world.say(client, shared_request(0, [0]), frames=[HANDLE])
    run, _ = world.take_run(engine)
    world.say(engine, shared_done(run.key), frames=[HANDLE])
    world.disconnect(engine)
    assert world.out.cleared == []
    world.say(client, m.Mapped([0]))
    assert world.out.cleared == ["party-0"]


def test_segments_of_a_lost_engine_with_nothing_under_way_go_at_once() -> None:
    world, _, (engine,) = make_world()
    world.disconnect(engine)
    assert world.out.cleared == ["party-0"]


def test_where_the_controller_cannot_reach_an_engine_clears() -> None:
    world, _, (lost, near, _) = make_world(engine_rooms=(THERE, THERE, HERE))
    world.disconnect(lost)
    assert world.out.cleared == []
    assert world.out.take(near, m.ClearSegments).party == "party-0"
    world.disconnect(near)  # nobody of that room is left to ask
    assert world.out.cleared == []


def test_a_client_without_shared_memory_gets_no_results_in_it() -> None:
    world, client, (engine,) = make_world(client_room="", engine_rooms=("",))
    world.say(client, msgspec.structs.replace(request(0, [0]), may_share=True))
    assert not world.take_run(engine)[0].may_share


# ---------------------------------------------------------------- the client's choice


@pytest.fixture
def pool() -> Iterator[Pool]:
    room = join_room(os.urandom(8).hex())
    assert room is not None
    made = Pool(room)
    yield made
    made.close()
    room.leave()


def test_choice_of_the_plane(pool: Pool) -> None:
    ours = pool.room.token
    near = [msgspec.structs.replace(make_info(i), id=i, room=ours) for i in range(2)]
    far = [msgspec.structs.replace(make_info(i), id=i, room=THERE, host="n7") for i in range(2, 9)]
    assert choose_pool("auto", pool, "", near) is pool
    assert choose_pool("frames", pool, ours, near) is None
    assert choose_pool("auto", pool, ours, far) is None
    assert choose_pool("auto", pool, ours, near + far) is pool, "the controller hands the bytes on"
    assert choose_pool("auto", pool, THERE, near + far) is None, "nobody could"
    assert choose_pool("auto", pool, THERE, near, is_open=True) is None, "an engine elsewhere may register"
    assert choose_pool("shm", pool, THERE, near) is pool
    assert choose_pool("auto", None, ours, near) is None
    with pytest.raises(PlaneUnavailable, match=r"engines 2 on n7, .* and 2 more cannot open"):
        choose_pool("shm", pool, ours, near + far)
    with pytest.raises(PlaneUnavailable, match="can use no shared memory"):
        choose_pool("shm", None, ours, near)


@pytest.mark.parametrize(
    ("plane", "words"), [("mpi", "no MPI plane yet"), ("tcp", "'auto', 'shm' or 'frames'"), (3, "3")]
)
def test_what_is_no_plane_is_refused(plane: Any, words: str) -> None:
    assert words in find_fault(plane)
    assert not find_fault("auto")
