"""Names of clusters: which are valid, and readable ones for clusters that nobody named."""

from __future__ import annotations

import re
import secrets

from hpcviews.errors import UsageError

NAME_LENGTH_MAX = 64

_VALID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

# Short, easy to say over a desk, hard to confuse. 32 x 32: a user has a handful of clusters at a time, and a name
# that is taken is simply drawn again.
_FIRST = (
    "amber brave calm clear cool crisp dawn deep early fair fast fine fresh glad gold green happy "
    "jolly keen kind lucky mild neat proud quick quiet royal silver sunny swift warm wise"
)
_SECOND = (
    "aspen badger birch bison cedar crane daisy eagle falcon fern finch fox hazel heron ibex iris lark linden lynx "
    "maple marten olive otter owl pine plum raven robin seal tern willow wren"
)


def check_name(name: str) -> None:
    """Refuse what cannot be a cluster's name.

    Names become directories and words of command lines, so they are kept to what needs no quoting anywhere.

    Raises:
        UsageError: It cannot.
    """
    if len(name) <= NAME_LENGTH_MAX and _VALID.fullmatch(name):
        return
    raise UsageError(
        f"{name!r} cannot be the name of a cluster: use up to {NAME_LENGTH_MAX} letters, digits and . _ - "
        "(not . or - first)"
    )


def make_name() -> str:
    """A readable name, for example ``calm-otter``. Not necessarily free."""
    return f"{secrets.choice(_FIRST.split())}-{secrets.choice(_SECOND.split())}"
