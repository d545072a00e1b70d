"""Names of clusters."""

import pytest

from hpcviews.errors import UsageError
from hpcviews.names import check_name, make_name


@pytest.mark.parametrize("name", ["a", "my-run", "Run_7.2", "7", "_x", "x" * 64])
def test_ordinary_names_are_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", ".x", "a/b", "a b", "a\n", "é", "x" * 65, "a;b", "$x"])
def test_names_that_need_quoting_or_leave_the_directory_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a cluster"):
        check_name(name)


def test_made_up_names_are_valid_and_differ() -> None:
    names = {make_name() for _ in range(100)}
    for name in names:
        check_name(name)
    assert len(names) > 50
