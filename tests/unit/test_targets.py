"""The targets grammar."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpcviews.client.targets import freeze_targets, parse_targets
from hpcviews.errors import NoEnginesRegistered, NoSuchEngine
from hpcviews.ids import EngineId

IDS = [EngineId(i) for i in (0, 1, 3, 7)]


@pytest.mark.parametrize(
    ("targets", "ids", "is_single"),
    [
        (None, [0, 1, 3, 7], False),
        ("all", [0, 1, 3, 7], False),
        ("ALL", [0, 1, 3, 7], False),
        (3, [3], True),
        (-1, [7], True),
        (-4, [0], True),
        (True, [1], True),
        (np.int64(7), [7], True),
        (np.array(3), [3], True),
        (slice(None), [0, 1, 3, 7], False),
        (slice(None, None, 2), [0, 3], False),
        (slice(-1, None), [7], False),
        (slice(10, None), [], False),
        ([7, 0], [7, 0], False),
        ((1,), [1], False),
        ([3, 3], [3, 3], False),
        (range(2), [0, 1], False),
        ({7, 1}, [1, 7], False),
        ((i for i in (3, 1)), [3, 1], False),
        (np.array([0, 7]), [0, 7], False),
        ([], [], False),
    ],
)
def test_targets_name_engines(targets: Any, ids: list[int], is_single: bool) -> None:
    assert parse_targets(targets, IDS) == (ids, is_single)


@pytest.mark.parametrize("targets", [2, 99, -5, [2], [0, 99], [-1], {4}])
def test_engine_that_is_not_there_is_one_exception_everywhere(targets: Any) -> None:
    with pytest.raises(NoSuchEngine) as caught:
        parse_targets(targets, IDS)
    assert isinstance(caught.value, IndexError) and isinstance(caught.value, KeyError)
    number = next(iter(targets)) if isinstance(targets, set) else targets[-1] if isinstance(targets, list) else targets
    assert str(number) in str(caught.value) and "[0, 1, 3, 7]" in str(caught.value)


@pytest.mark.parametrize("targets", ["foo", 1.5, b"ab", [1.0], ["0"], object()])
def test_what_is_no_target_is_a_type_error(targets: Any) -> None:
    with pytest.raises(TypeError, match="target"):
        parse_targets(targets, IDS)


@pytest.mark.parametrize("targets", [None, "all", 0, [0], slice(None)])
def test_without_engines_the_error_says_how_to_wait(targets: Any) -> None:
    with pytest.raises(NoEnginesRegistered, match="wait_for_engines"):
        parse_targets(targets, [])


def test_error_with_ten_thousand_engines_stays_readable() -> None:
    with pytest.raises(NoSuchEngine, match="9980 more") as caught:
        parse_targets(10_000, [EngineId(i) for i in range(10_000)])
    assert len(str(caught.value)) < 300


def test_views_keep_all_open_and_freeze_the_rest() -> None:
    assert freeze_targets("All", []) == "all"
    assert freeze_targets(None, []) == "all"
    assert freeze_targets(-1, IDS) == 7
    assert freeze_targets(slice(2), IDS) == [0, 1]
    assert freeze_targets((i for i in [3]), IDS) == [3]
