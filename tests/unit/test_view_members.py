"""What all views have: traits, flags, history, results, and the names that old programs lean on."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from fake_controller import FakeController
from traitlets import HasTraits, TraitError

import hpcviews
from hpcviews import BroadcastView, Client, DirectView, LoadBalancedView, RemoteError, UsageError, View
from hpcviews.client import view as view_module
from hpcviews.client.results import AsyncResult
from hpcviews.client.view import save_ids, spin_after, sync_results
from hpcviews.wire import messages as m


def double(x: int) -> int:
    return 2 * x


# ---------------------------------------------------------------- traits


def test_views_have_the_members_of_traitlets(fake: FakeController, rc: Client) -> None:
    for view in (rc[:], rc.load_balanced_view()):
        assert isinstance(view, HasTraits)
        names = {"block", "track", "targets", "client", "history", "outstanding", "results"}
        assert names <= set(view.trait_names()) and names <= set(type(view).class_trait_names())
        assert names <= set(view.traits()) and names <= set(type(view).class_traits())
        assert view.trait_metadata("block", "nothing") is None
        assert view.client is rc
        with pytest.raises(TraitError):
            view.block = "yes"  # type: ignore[assignment]


def test_changes_of_traits_are_told(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    seen: list[Any] = []

    def on_change(name: str, old: Any, new: Any) -> None:
        seen.append((name, old, new))

    with pytest.warns(DeprecationWarning, match="observe"):
        view.on_trait_change(on_change, ["block", "track"])
    view.block = True
    view.set_flags(track=True)
    with view.temp_flags(block=False):
        assert not view.block
    with pytest.warns(DeprecationWarning, match="observe"):
        view.on_trait_change(on_change, ["block", "track"], remove=True)
    view.block = False
    assert seen == [("block", False, True), ("track", False, True)], "a flag set for a block is no change"


@pytest.mark.parametrize("name", ["outstanding", "results"])
def test_what_follows_from_calls_cannot_be_set(fake: FakeController, rc: Client, name: str) -> None:
    with pytest.raises(AttributeError, match="follows from what has been submitted"):
        setattr(rc[:], name, {})


def test_flags_are_set_at_once_or_not_at_all(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    with pytest.raises(KeyError, match="Invalid name: 'nonsense'"):
        view.set_flags(block=True, nonsense=1)
    with pytest.raises(TraitError):
        view.set_flags(block=True, track="yes")
    assert not view.block
    assert view.set_flags(block=True) is view and view.block
    with pytest.raises(RuntimeError, match="in the block"), view.temp_flags(block=False):
        assert not view.block
        raise RuntimeError("in the block")
    assert view.block


# ---------------------------------------------------------------- what was submitted


def test_results_of_a_view_are_those_that_somebody_holds(fake: FakeController, rc: Client) -> None:
    view, other = rc[:], rc[0]
    both, failed = view.apply_async(double, 1), view.apply_async(double, 2)
    elsewhere = other.apply_async(double, 3)
    fake.answer(both.first, "a")
    fake.fail(failed.first, ValueError("bad")), fake.answer(failed.first + 1, "b")
    assert failed.wait(10)
    assert set(view.results) == {both.msg_ids[0], *failed.msg_ids} and len(view.results) == 3
    assert view.results[both.msg_ids[0]] == "a" and isinstance(view.results[failed.msg_ids[0]], RemoteError)
    assert both.msg_ids[1] not in view.results, "it has not ended"
    for missing in (both.msg_ids[1], elsewhere.msg_ids[0], "nonsense"):
        with pytest.raises(KeyError, match="is here"):
            _ = view.results[missing]
    del failed
    assert set(view.results) == {both.msg_ids[0]}
    view.spin()


def test_history_knows_what_is_in_it(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    rc[0].apply_async(double, 1)
    ar = view.apply_async(double, 1)
    rc[0].apply_async(double, 1)
    view.apply_async(double, 1)
    assert ar.msg_ids[1] in view.history and rc.history[0] not in view.history and rc.history[3] not in view.history
    assert "nonsense" not in view.history and "0123456789abcdef-1" not in view.history and 5 not in view.history


def test_wait_takes_jobs_in_all_forms(fake: FakeController, rc: Client) -> None:
    rc[1].apply_async(double, 0)  # a position in the view's history is not one in the client's
    view = rc[0]
    first, second = view.apply_async(double, 1), view.apply_async(double, 2)
    other: Future[int] = Future()
    forms = [0, -2, first, first.msg_ids[0], [first], {first}, [0, first.msg_ids[0]], (job for job in [first])]
    for jobs in forms[:-1]:
        assert view.wait(jobs, timeout=0) is False
    assert view.wait(timeout=0) is False
    fake.answer(first.first)
    for jobs in forms:
        assert view.wait(jobs, timeout=10) is True
    assert view.wait(timeout=0) is False and view.wait([first, second], 0) is False
    assert view.wait([first, other], timeout=0) is False, "other futures are waited for, too"
    other.set_result(1)
    assert view.wait([first, other], timeout=10) and rc.wait(1, timeout=10)
    fake.answer(second.first)
    for forever in (None, -1):
        assert view.wait(timeout=forever) is True
    assert view.wait([], timeout=None) is True and view.wait(f"{view.client.session}-999") is True, "unknown is done"
    for wrong in (1.5, object()):
        with pytest.raises(TypeError, match="jobs must be"):
            view.wait(wrong)
    with pytest.raises(IndexError, match="no request 7"):
        view.wait(7)


class OldView(DirectView):
    """As a program of ten years ago may have it."""

    spun = 0

    @sync_results
    @save_ids
    def call_both(self, other: View) -> AsyncResult:
        """Sends by another view."""
        return AsyncResult.join(self.apply_async(double, 1), other.apply_async(double, 2))

    @spin_after
    def answer(self) -> int:
        """Something."""
        return 42

    def spin(self) -> None:
        self.spun += 1


def test_old_decorators_keep_history_right(fake: FakeController, rc: Client) -> None:
    view, other = OldView(rc, targets=[0]), rc.load_balanced_view()
    ar = view.call_both(other)
    assert view.history == ar.msg_ids and len(view.history) == 2, "each once"
    assert view.outstanding == set(ar.msg_ids) and view.call_both.__name__ == "call_both"
    for seq in rc.history.iterate_seqs():
        fake.answer(seq, "value")
    assert view.wait(timeout=10) and set(view.results) == set(ar.msg_ids)
    assert view.answer() == 42 and view.spun == 1


# ---------------------------------------------------------------- names


def test_broadcast_view_is_a_direct_view_of_the_engines_that_are_there(fake: FakeController, rc: Client) -> None:
    view = rc.broadcast_view(is_coalescing=True, block=False)
    assert isinstance(view, BroadcastView) and isinstance(view, DirectView)
    assert view.targets == [0, 1] and view.is_coalescing and repr(view) == "<BroadcastView [0, 1]>"
    ar = view.apply_async(double, 1)
    assert fake.take_call(m.Request).targets == [0, 1]
    fake.answer(ar.first, "a"), fake.answer(ar.first + 1, "b")
    assert ar.get(10) == ["a", "b"]
    assert rc.broadcast_view(1).targets == 1


def test_base_view_is_not_for_use(rc: Client) -> None:
    with pytest.raises(AssertionError, match="subclasses"):
        View(rc)
    assert view_module.save_ids is save_ids


def test_serializers_of_ipyparallel_are_accepted_or_explained(fake: FakeController, rc: Client) -> None:
    view = rc[0]
    for switch in (view.use_cloudpickle, view.use_pickle):
        ar = switch()
        fake.answer(ar.first)
        assert ar.get(10) is None
    with pytest.raises(UsageError, match="cloudpickle already"):
        view.use_dill()


def test_public_names_are_the_classes(rc: Client) -> None:
    assert isinstance(rc.executor(), hpcviews.ViewExecutor)
    assert hpcviews.remote(rc[:])(double).__class__ is hpcviews.RemoteFunction
    assert hpcviews.parallel(rc[:])(double).__class__ is hpcviews.ParallelFunction
    assert isinstance(rc.load_balanced_view(), LoadBalancedView) and hpcviews.LazyMapIterator.cancel
