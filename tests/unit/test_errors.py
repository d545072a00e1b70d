"""The error tree is what errors.py's first lines say, and every error survives a pickle."""

from __future__ import annotations

import inspect
import pickle
import re

from hpcviews import errors
from hpcviews.errors import AlreadyDisplayedError, CompositeError, EngineError, NoSuchEngine, RemoteError


def test_docstring_shows_the_tree_as_it_is() -> None:
    assert errors.__doc__ is not None
    shown: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"([│ ]*)(?:[├└]── )?([A-Z]\w+)\b", line)
        if found is None or not hasattr(errors, found[2]):
            continue
        depth = line.index(found[2])
        parents = [(d, name) for d, name in parents if d < depth]
        shown[found[2]] = parents[-1][1] if parents else ""
        parents.append((depth, found[2]))
    real = {
        name: next((base.__name__ for base in cls.__bases__ if issubclass(base, errors.HpcviewsError)), "")
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, errors.HpcviewsError)
    }
    assert shown == real


def test_remote_error_pickles_with_its_cause() -> None:
    error = RemoteError(
        "ZeroDivisionError", "division by zero", "Traceback…", {"engine_id": 3, "host": "n1", "rank": 2}
    )
    error.__cause__ = ZeroDivisionError("division by zero")
    again = pickle.loads(pickle.dumps(error))
    assert type(again.__cause__) is ZeroDivisionError and again.args == error.args
    assert (again.engine_id, again.host, again.rank, again.traceback) == (3, "n1", 2, "Traceback…")


def test_composite_of_composites_pickles_and_shows_the_first_four() -> None:
    inner = CompositeError("inner", [RemoteError("E", str(i)) for i in range(6)])
    outer = pickle.loads(pickle.dumps(CompositeError("outer", [inner, EngineError("engine 1 died")])))
    assert [type(e).__name__ for e in outer.elist] == ["CompositeError", "EngineError"]
    assert str(outer.elist[0]).endswith("... 2 more exceptions ...")
    assert "engine 1 died" in str(outer)


def test_composite_error_tells_where_the_first_failed() -> None:
    failed = [RemoteError("E", str(i), f"Traceback of {i}\nE: {i}\n", {"engine_id": i}) for i in range(2)]
    error = CompositeError("one or more exceptions raised in: f", [EngineError("engine 7 died"), *failed])
    assert str(error).splitlines() == [
        "one or more exceptions raised in: f",
        "engine 7 died",
        "[0:apply] E: 0",
        "[1:apply] E: 1",
        "[0:apply] was:",
        "Traceback of 0",
        "E: 0",
    ]
    assert str(CompositeError("outer", [error])).splitlines() == ["outer", "one or more exceptions raised in: f"]


def test_no_such_engine_is_what_both_habits_catch() -> None:
    error = NoSuchEngine("no engine 7")
    assert isinstance(error, IndexError) and isinstance(error, KeyError) and str(error) == "no engine 7"
    assert str(pickle.loads(pickle.dumps(error))) == "no engine 7"


def test_every_error_pickles() -> None:
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.HpcviewsError):
            several = issubclass(cls, RemoteError) and cls is not AlreadyDisplayedError
            error = cls("a", ["b"]) if several else cls("a")
            assert type(pickle.loads(pickle.dumps(error))) is cls
