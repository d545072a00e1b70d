"""The cache of pickled functions: never an old version, and a hit wherever nothing has changed."""

from __future__ import annotations

import itertools
import math
import types
from typing import Any

import pytest

from hpcviews.client.function_cache import FunctionCache
from hpcviews.client.functions import PickledFunction, name_function
from hpcviews.wire.payload import dumps


class Counter:
    """A cache, and how often it had to pickle."""

    def __init__(self) -> None:
        self.cache = FunctionCache()
        self.pickled = 0
        self.engine_names: set[str] = set()

    def get(self, function: Any) -> PickledFunction:
        def pickle() -> PickledFunction:
            self.pickled += 1
            return name_function(dumps(function, engine_names=self.engine_names))

        return self.cache.get(function, self.engine_names, pickle)


@pytest.fixture
def counter() -> Counter:
    return Counter()


def define(source: str, **namespace: Any) -> types.FunctionType:
    namespace = {"__name__": "__main__", **namespace}
    exec(source, namespace)
    function = namespace["f"]
    assert isinstance(function, types.FunctionType)
    return function


def test_unchanged_function_is_pickled_once(counter: Counter) -> None:
    f = define("def f(x): return math.sin(x) + K + g(x)\ndef g(x): return [abs(i) for i in (x,)][0]", math=math, K=2)
    assert counter.get(f) is counter.get(f)
    assert counter.pickled == 1


def test_lambdas_of_one_place_share_an_entry_and_differ_by_what_they_close_over(counter: Counter) -> None:
    make = define("def f(n): return lambda: n")
    digests = [counter.get(make(n)).digest for n in (1, 1, 2, True, 1.0)]
    assert digests[0] == digests[1] and len(set(digests)) == 4
    assert counter.pickled == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__globals__.update(K=3),
        lambda f: f.__globals__.update(K=2.0),
        lambda f: f.__globals__.pop("K"),
        lambda f: f.__globals__.update(g=define("def f(x): return -x")),
        lambda f: f.__globals__["g"].__globals__.update(DEEP=8),
        lambda f: setattr(f, "__defaults__", (6,)),
        lambda f: setattr(f, "__code__", (lambda x, y=5: x).__code__),
        lambda f: setattr(f, "note", "an attribute"),
    ],
)
def test_whatever_changes_is_pickled_anew(counter: Counter, change: Any) -> None:
    f = define("DEEP = 7\ndef g(x): return x + DEEP\ndef f(x, y=5): return g(x) + K", K=2)
    before = counter.get(f)
    change(f)
    after = counter.get(f)
    assert counter.pickled == 2 and before.digest != after.digest


def test_function_with_a_mutable_global_is_always_pickled(counter: Counter) -> None:
    f = define("def f(): return len(items)", items=[1])
    first = counter.get(f).digest
    f.__globals__["items"].append(2)
    assert counter.get(f).digest != first


def test_name_that_is_on_the_engines_does_not_count(counter: Counter) -> None:
    f = define("def f(): return len(items)", items=[1])
    counter.engine_names.add("items")
    assert counter.get(f) is counter.get(f)


def test_recursion_and_other_callables_are_no_trouble(counter: Counter) -> None:
    f = define("def f(n): return 1 if n == 0 else n * f(n - 1)")
    for function in (f, len, print, int, itertools.chain):
        assert counter.get(function).payload.data


def test_the_cache_is_bounded(counter: Counter) -> None:
    for i in range(300):
        counter.get(define(f"def f(): return {i}"))
    assert len(counter.cache._kept) <= 256
