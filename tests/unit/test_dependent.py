"""Dependencies as users write them, and functions that say where they can run."""

from __future__ import annotations

import math
import pickle
import sys
import types
from typing import Any

import pytest
from fake_controller import FakeController
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

import hpcviews
from hpcviews import Client, Dependency, UnmetDependency, depend, dependent, interactive, require
from hpcviews.wire import messages as m
from hpcviews.wire.payload import dumps, loads

NAMES = [f"{'a' * 16}-{i}" for i in range(5)]


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A ``__main__`` like an engine's."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module.__dict__


# ---------------------------------------------------------------- Dependency


def test_dependency_is_a_set_of_msg_ids_made_of_many_things(rc: Client) -> None:
    one = rc[0].apply_async(int)
    several = rc[:].apply_async(int)
    assert Dependency() == set()
    assert Dependency("x") == {"x"}
    assert Dependency(one) == set(one.msg_ids)
    assert Dependency(several) == set(several.msg_ids) and len(several.msg_ids) > 1
    assert Dependency([one, "x", several]) == {"x", *one.msg_ids, *several.msg_ids}
    assert Dependency(name for name in NAMES) == set(NAMES)
    assert Dependency(Dependency(NAMES, all=False)) == set(NAMES)


def test_dependency_and_its_dict_are_the_same(rc: Client) -> None:
    dependency = Dependency(NAMES, all=False, success=False, failure=True)
    assert dependency.as_dict() == {"dependencies": NAMES, "all": False, "success": False, "failure": True}
    for again in (Dependency(dependency.as_dict()), dependency.copy(), pickle.loads(pickle.dumps(dependency))):
        assert isinstance(again, Dependency) and again.is_same(dependency) and again is not dependency
    assert not dependency.is_same(Dependency(NAMES))
    assert "all=False" in repr(dependency)


@pytest.mark.parametrize("wrong", [5, [5], [["x"]], {"msg_ids": ["x"]}, {"dependencies": [], "x": 1}, object(), b"x"])
def test_what_is_no_dependency_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="invalid dependency type"):
        Dependency(wrong)


def test_dependency_that_nothing_satisfies_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of successes or failures"):
        Dependency(NAMES, success=False)


@given(
    *[st.sets(st.sampled_from(NAMES)) for _ in range(3)], *[st.booleans() for _ in range(3)]
)  # fmt: skip
def test_check_and_unreachable_are_what_the_words_say(
    names: set[str], completed: set[str], failed: set[str], all_: bool, success: bool, failure: bool
) -> None:
    failed = failed - completed
    if not (success or failure):
        return
    dependency = Dependency(names, all_, success, failure)
    counts = (completed if success else set()) | (failed if failure else set())
    lost = (completed | failed) - counts
    if not names:
        assert dependency.check(completed, failed) and not dependency.unreachable(completed, failed)
    elif all_:
        assert dependency.check(completed, failed) == all(name in counts for name in names)
        assert dependency.unreachable(completed, failed) == any(name in lost for name in names)
    else:
        assert dependency.check(completed, failed) == any(name in counts for name in names)
        assert dependency.unreachable(completed, failed) == all(name in lost for name in names)


def test_failures_need_not_be_told_to_check() -> None:
    assert Dependency(NAMES[:1]).check(NAMES[:1]) and not Dependency(NAMES[:1]).unreachable([])


# ---------------------------------------------------------------- flags of load-balanced views


def test_flags_are_checked_when_they_are_set(rc: Client) -> None:
    view = rc.load_balanced_view()
    for flag in ("after", "follow"):
        with pytest.raises(ValueError, match="Invalid dependency: 5"):
            view.set_flags(**{flag: 5})
        with pytest.raises(ValueError, match="Invalid dependency"):
            setattr(view, flag, [5])
        assert getattr(view, flag) is None
    for wrong, error in ((-1, ValueError), (math.nan, ValueError), ("1", TraitError), ([], TraitError)):
        with pytest.raises(error, match="timeout"):
            view.timeout = wrong
    with pytest.raises(TraitError):
        view.label = 5
    with pytest.raises(TraitError):
        view.retries = -1
    with pytest.raises(KeyError, match="timeout"):
        rc[:].set_flags(timeout=1)
    assert rc.load_balanced_view(timeout=None).timeout is None
    view.set_flags(after="x", follow="x")
    view.set_flags(after=None, follow=None)
    assert view.after is None and view.follow is None
    assert rc.load_balanced_view(timeout=math.inf).timeout == 0.0
    assert rc.load_balanced_view(timeout=2).timeout == 2.0


def test_flags_travel_with_tasks_and_are_in_the_metadata(fake: FakeController, rc: Client) -> None:
    view = rc.load_balanced_view()
    first = view.map_async(abs, range(100))
    for _ in range(100):
        fake.take_call(m.Task)
    dependency = Dependency(first, failure=True)
    session = rc.session
    with view.temp_flags(after=dependency, follow=first.msg_ids[3], timeout=1.5, retries=2, label="night"):
        dependency.clear()  # the view has its own
        second = view.apply_async(abs, 1)
        third = view.map_async(abs, [1, 2], label="day")
    task = fake.take_call(m.Task)
    assert (task.retries, task.label) == (2, "night")
    assert task.conditions == m.Conditions(
        m.DependencyInfo([f"{session}-0..99"], True, True, True),
        m.DependencyInfo([f"{session}-3"], True, True, False),
        1.5,
    )
    assert fake.take_call(m.Task).label == "day"
    assert sorted(second.metadata["after"]) == sorted(first.msg_ids)
    assert second.metadata["follow"] == [first.msg_ids[3]] and second.label == "night"
    assert third.label == ["day", "day"] and third.follow == [[first.msg_ids[3]]] * 2
    fake.take_call(m.Task)
    plain = view.apply_async(abs, 1)
    assert fake.take_call(m.Task).conditions is None
    assert (plain.after, plain.follow, plain.label) == ([], [], None)


def test_changed_dependency_of_a_view_is_seen(fake: FakeController, rc: Client) -> None:
    view = rc.load_balanced_view(after=NAMES[0])
    view.apply_async(int)
    view.after.add(NAMES[2])
    view.apply_async(int)
    view.after.remove(NAMES[0])
    view.after.add(NAMES[1])
    view.apply_async(int)
    told = [fake.take_call(m.Task).conditions for _ in range(3)]
    assert [c.after.msg_ids for c in told if c is not None and c.after is not None] == [
        [NAMES[0]], NAMES[0:1] + NAMES[2:3], [f"{'a' * 16}-1..2"]
    ]  # fmt: skip


def test_label_of_direct_views_is_a_flag_and_an_argument(fake: FakeController, rc: Client, tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text("a = 1")
    view = rc[:]
    assert view.execute("a = 1", label="one").label == ["one"] * len(rc)
    assert view.run(script, label="two").label == ["two"] * len(rc)
    assert view.map_async(abs, range(2), label="three").label == ["three"] * len(rc)
    with view.temp_flags(label="four"):
        assert view.push({"a": 1}).label == view.pull("a").label == ["four"] * len(rc)
        assert view.execute("a = 1", label="five").label == ["five"] * len(rc)
    assert view.apply_async(int).label == [None] * len(rc)
    with pytest.raises(TypeError, match="label"):
        view.execute("a = 1", label=5)  # type: ignore[arg-type]
    sent = [fake.take_call(m.Request) for _ in range(8)]
    assert [r.label for r in sent] == ["one", "two", "three", "three", "four", "four", "five", ""]


# ---------------------------------------------------------------- depend, require


def has(number: int, least: int = 1) -> bool | None:
    return None if number >= least else False


def test_dependent_called_here_is_its_function() -> None:
    @depend(has, 0)
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert isinstance(double, dependent) and double(4) == 8
    assert (double.__name__, double.func_name, double.__doc__) == ("double", "double", "Twice.")
    assert (double.df, double.dargs, double.dkwargs) == (has, (0,), {})


def test_check_passes_unless_it_says_false_or_raises() -> None:
    def refuse() -> None:
        raise UnmetDependency("not here")

    depend(has, 5, least=3)(int).check()
    depend(lambda: 0)(int).check()  # only False itself
    with pytest.raises(UnmetDependency, match="has returned False, so int does not run here"):
        depend(has, 2, least=3)(int).check()
    with pytest.raises(UnmetDependency, match="not here"):
        depend(refuse)(int).check()
    with pytest.raises(ZeroDivisionError):
        depend(lambda: 1 / 0)(int).check()


def test_all_checks_of_a_stack_are_made() -> None:
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(UnmetDependency):
            depend(has, wrong[0])(depend(has, wrong[1])(int)).check()
    depend(has, 1)(depend(has, 1)(int)).check()


def test_dependent_travels_with_functions_by_value(main_module: dict[str, Any]) -> None:
    exec("limit = 3\ndef f(): return limit\ndef df(x): return x < limit", main_module)
    sent = dumps(dependent(main_module["f"], main_module["df"], 5))
    main_module.clear()
    again = loads(sent.data, sent.frames)
    with pytest.raises(UnmetDependency):
        again.check()
    main_module["limit"] = 9  # as if it had been pushed
    again.check()
    assert again() == 9


@pytest.mark.parametrize("wrong", [(5, int), (int, 5)])
def test_dependent_of_what_is_no_function_is_refused(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="made of functions"):
        dependent(*wrong)


def test_required_modules_functions_and_values_are_in_the_namespace(main_module: dict[str, Any]) -> None:
    f = require("os.path", math, has, limit=4)(int)
    f.check()
    import os

    assert main_module["os"] is os and main_module["math"] is math
    assert main_module["has"] is has and main_module["limit"] == 4


def test_required_module_that_is_missing_is_an_unmet_dependency(main_module: dict[str, Any]) -> None:
    with pytest.raises(UnmetDependency, match="no_such_module cannot be imported: No module named"):
        require("no_such_module")(int).check()


def test_required_things_need_names() -> None:
    with pytest.raises(TypeError, match=r"must be passed by kwarg, but got: <class 'int'>"):
        require(5)


# ---------------------------------------------------------------- interactive


def get_secret() -> Any:
    return secret


secret = "the module's"


def test_interactive_function_sees_the_namespace_it_is_sent_to(main_module: dict[str, Any]) -> None:
    made = interactive(get_secret)
    assert made() == get_secret() == "the module's" and get_secret.__module__ != "__main__"
    sent = dumps(made)
    assert loads(sent.data, sent.frames)() == "the module's"
    main_module["secret"] = "the engine's"
    assert loads(sent.data, sent.frames)() == "the engine's"
    by_reference = dumps(get_secret)
    assert loads(by_reference.data, by_reference.frames)() == "the module's"


def test_interactive_function_is_otherwise_the_same() -> None:
    outer = 3

    def f(a: int, b: int = 2, *, c: int = 4) -> int:
        """Doc."""
        return a + b + c + outer

    made = interactive(f)
    assert made(1) == f(1) == 10
    assert (made.__name__, made.__doc__, made.__annotations__) == ("f", "Doc.", f.__annotations__)
    with pytest.raises(TypeError, match="written in Python"):
        interactive(len)  # type: ignore[arg-type]


def test_names_are_public() -> None:
    for name in ("Dependency", "depend", "require", "dependent", "interactive"):
        assert name in hpcviews.__all__ and hasattr(hpcviews, name)
