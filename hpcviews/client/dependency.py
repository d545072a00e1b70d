"""What a task is to wait for, as users say it: sets of msg_ids and how they count."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from hpcviews.client.results import AsyncResult
from hpcviews.ids import render_msg_id_runs
from hpcviews.wire import messages as m


class DependencyDict(TypedDict):
    """A Dependency as a plain dict."""

    dependencies: list[str]
    all: bool
    success: bool
    failure: bool


class Dependency(set[str]):
    """Requests, by msg_id, and what must become of them.

    Requests of any view and any client will do, finished or not.

    Attributes:
        all: All of them must count; False: any one of them is enough.
        success: One that ended well counts.
        failure: One that failed, or was withdrawn, counts.
    """

    def __init__(self, dependencies: Any = (), all: bool = True, success: bool = True, failure: bool = False):
        """Collect msg_ids.

        Args:
            dependencies: A msg_id, an AsyncResult (all its requests), an iterable of those, or what `as_dict` gives,
                which brings its own `all`, `success` and `failure`. Another Dependency gives only its msg_ids.
            all, success, failure: As the attributes.
        Raises:
            ValueError: Nothing would count.
            TypeError: Something that is no request.
        """
        if isinstance(dependencies, Mapping):
            unknown = dependencies.keys() - DependencyDict.__annotations__.keys()
            if unknown or "dependencies" not in dependencies:
                raise TypeError(
                    f"invalid dependency type: a dict with the keys {sorted(map(str, dependencies))}; "
                    f"one of as_dict() has {sorted(DependencyDict.__annotations__)}"
                )
            all = bool(dependencies.get("all", all))
            success = bool(dependencies.get("success", success))
            failure = bool(dependencies.get("failure", failure))
            dependencies = dependencies["dependencies"]
        if not (success or failure):
            raise ValueError("Must depend on at least one of successes or failures!")
        super().__init__(_collect(dependencies))
        self.all = all
        self.success = success
        self.failure = failure

    def __reduce__(self) -> Any:
        return Dependency, (self.as_dict(),)

    def __repr__(self) -> str:
        return f"Dependency({sorted(self)}, all={self.all}, success={self.success}, failure={self.failure})"

    def _count(self, completed: Collection[str], failed: Collection[str] | None, is_wanted: bool) -> int:
        """How many ended so that they count, or with False, so that they do not."""
        good, bad = self.intersection(completed), self.intersection(failed or ())
        return len((good if self.success is is_wanted else set()) | (bad if self.failure is is_wanted else set()))

    def check(self, completed: Collection[str], failed: Collection[str] | None = None) -> bool:
        """Whether it is satisfied, when these requests ended well and those failed. An empty one always is."""
        if not self:
            return True
        count = self._count(completed, failed, True)
        return count == len(self) if self.all else count > 0

    def unreachable(self, completed: Collection[str], failed: Collection[str] | None = None) -> bool:
        """Whether it can never be satisfied any more, when these requests ended well and those failed."""
        if not self:
            return False
        count = self._count(completed, failed, False)
        return count > 0 if self.all else count == len(self)

    def as_dict(self) -> DependencyDict:
        """As a plain dict, of which a Dependency can be made again."""
        return {"dependencies": sorted(self), "all": self.all, "success": self.success, "failure": self.failure}

    def copy(self) -> Dependency:
        """Another one that is the same."""
        return Dependency(self, self.all, self.success, self.failure)

    def is_same(self, other: Dependency) -> bool:
        """Whether another one says the same; `==` compares the msg_ids alone, as of any sets."""
        return (self.all, self.success, self.failure) == (other.all, other.success, other.failure) and self == other

    def render(self) -> RenderedDependency:
        """As it is now, in the forms in which it is needed again and again."""
        message = m.DependencyInfo(render_msg_id_runs(self), self.all, self.success, self.failure)
        return RenderedDependency(self.copy(), message, tuple(sorted(self)))


class RenderedDependency(NamedTuple):
    """A Dependency, and what has been made of it."""

    value: Dependency
    message: m.DependencyInfo
    msg_ids: tuple[str, ...]


def _collect(dependencies: Any) -> Iterable[str]:
    if isinstance(dependencies, str):
        return (dependencies,)
    if isinstance(dependencies, AsyncResult):
        return dependencies.msg_ids
    if isinstance(dependencies, Dependency):
        return dependencies
    if not isinstance(dependencies, Iterable):
        raise _not_a_dependency(dependencies)
    msg_ids: list[str] = []
    for item in dependencies:
        if isinstance(item, str):
            msg_ids.append(item)
        elif isinstance(item, AsyncResult):
            msg_ids += item.msg_ids
        else:
            raise _not_a_dependency(item)
    return msg_ids


def _not_a_dependency(what: object) -> TypeError:
    return TypeError(
        f"invalid dependency type: {type(what).__name__} {what!r:.80}; it takes AsyncResults and msg_ids (str), "
        "and iterables of them"
    )
