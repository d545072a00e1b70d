"""The name that programs written for ipyparallel use for calls of very many engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcviews.client.direct_view import DirectView
from hpcviews.client.flags import BoolFlag
from hpcviews.client.targets import parse_targets

if TYPE_CHECKING:
    from hpcviews.client.client import Client


class BroadcastView(DirectView):
    """A direct view, whose engines are chosen when it is made.

    Every call of a direct view is one message, which the controller fans out, so there is nothing to be gained here.

    Attributes:
        is_coalescing: Accepted, and without effect: answers are batched anyway, and each keeps its own metadata.
    """

    is_coalescing = BoolFlag(False)

    def __init__(self, client: Client | None = None, socket: None = None, targets: Any = "all", **flags: Any):
        if client is not None:
            parsed = parse_targets(targets, client._connection.registry.ids)
            targets = int(parsed.ids[0]) if parsed.is_single else list(parsed.ids)
        super().__init__(client, socket, targets=targets, **flags)
