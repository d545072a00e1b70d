"""Decorators for methods of one's own subclasses of views, as programs written for IPython.parallel have them.

The views' own methods need none of them: history, outstanding requests and results are always current.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from hpcviews.client.results import AsyncResult

if TYPE_CHECKING:
    from hpcviews.client.view import View

F = TypeVar("F", bound=Callable[..., Any])


def save_ids(method: F) -> F:
    """Decorator: requests whose AsyncResult the method returns are in the view's history, each once.

    For methods that send through another view or by the client's means; what is there already stays where it is.
    """

    @wraps(method)
    def saving(self: View, *args: Any, **kwargs: Any) -> Any:
        returned = method(self, *args, **kwargs)
        if isinstance(returned, AsyncResult):
            self.adopt(returned)
        return returned

    return saving  # type: ignore[return-value]  # of the same signature


def sync_results(method: F) -> F:
    """Decorator: `View.results` is current when the method returns. It always is, so this changes nothing."""
    return method


def spin_after(method: F) -> F:
    """Decorator: call `View.spin` after the method."""

    @wraps(method)
    def spinning(self: View, *args: Any, **kwargs: Any) -> Any:
        returned = method(self, *args, **kwargs)
        self.spin()
        return returned

    return spinning  # type: ignore[return-value]  # of the same signature
