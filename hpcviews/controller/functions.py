"""Functions on their way: kept once, sent to each engine once, forgotten when nobody needs them.

The senders bound this table: a client forgets the least recently used digests (client/functions.py), and
everything of a client that is gone goes with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, Frames
from hpcviews.ids import Digest
from hpcviews.wire import messages as m


@dataclass(slots=True, eq=False)
class Entry:
    """One pickled function."""

    message: m.Function
    frames: Frames
    holders: set[Client] = field(default_factory=set)
    """Clients that may still name it."""
    uses: int = 0
    """Unfinished requests that name it."""
    engines: set[Engine] = field(default_factory=set)
    """Engines that have it."""
    records: int = 0
    """Records of finished requests that keep it, in memory."""
    nbytes: int = 0


class FunctionTable:
    """All functions that unfinished or future requests may name."""

    def __init__(self) -> None:
        self.entries: dict[Digest, Entry] = {}

    def add(self, client: Client, message: m.Function, frames: Frames) -> None:
        """A client sent a function."""
        digest = Digest(message.digest)
        entry = self.entries.get(digest)
        if entry is None:
            nbytes = len(message.data) + sum(len(frame) for frame in frames)
            entry = self.entries[digest] = Entry(message, frames, nbytes=nbytes)
        entry.holders.add(client)

    def forget(self, out: Outbox, client: Client, digest: Digest) -> None:
        """A client will not name it again."""
        entry = self.entries.get(digest)
        if entry is not None:
            entry.holders.discard(client)
            self._drop_if_unused(out, digest, entry)

    def forget_all_of(self, out: Outbox, client: Client) -> None:
        """A client is gone."""
        for digest, entry in list(self.entries.items()):
            if client in entry.holders:
                entry.holders.discard(client)
                self._drop_if_unused(out, digest, entry)

    def use(self, digest: Digest) -> bool:
        """A request names it. False: it is not known."""
        entry = self.entries.get(digest)
        if entry is None:
            return False
        entry.uses += 1
        return True

    def use_again(self, entry: Entry) -> None:
        """A request names what an earlier one named; it may have been forgotten here."""
        self.entries.setdefault(Digest(entry.message.digest), entry).uses += 1

    def unuse(self, out: Outbox, digest: Digest) -> Entry:
        """That request ended. Returns the function, for its record."""
        entry = self.entries[digest]
        entry.uses -= 1
        if not entry.uses:
            self._drop_if_unused(out, digest, entry)
        return entry

    def provide(self, out: Outbox, engine: Engine, digest: Digest) -> None:
        """Send it to an engine that does not have it, ahead of the request that names it."""
        if digest not in engine.functions:
            entry = self.entries[digest]
            out.send(engine.route, entry.message, entry.frames)
            engine.functions.add(digest)
            entry.engines.add(engine)

    def engine_gone(self, engine: Engine) -> None:
        """An engine and its memory are gone."""
        for digest in engine.functions:
            entry = self.entries.get(digest)
            if entry is not None:
                entry.engines.discard(engine)
        engine.functions.clear()

    def _drop_if_unused(self, out: Outbox, digest: Digest, entry: Entry) -> None:
        if entry.holders or entry.uses:
            return
        del self.entries[digest]
        for engine in sorted(entry.engines, key=lambda e: e.id):
            engine.functions.discard(digest)
            out.send(engine.route, m.ForgetFunction(digest))
        entry.engines.clear()  # a record may bring it back
