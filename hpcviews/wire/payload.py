"""Python objects to payloads and back: pickle protocol 5 with the big buffers out of band.

A payload is ``data`` (small, travels inside the message) and ``frames`` (zmq frames of their own). Big buffers
are never copied: the sender's frames alias the object's memory, and what `loads` returns aliases the received
frames. So the sender must leave the object alone until the frames have been sent (`MessageTracker`).

With a pool (pool.py) the biggest buffers are written into shared memory instead, which is their one copy, and a handle
is their frame (shared.py). What `loads` returns then aliases a private map of it, and the sender's object is free at
once.

Functions defined in ``__main__`` get the receiver's ``__main__`` as their globals, which on an engine is the
user's namespace: they see what was pushed there, as they do in IPython.parallel. Globals of the sender that they
use travel with them and fill the names the namespace does not have; see `_install_captured`.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import cloudpickle
import zmq

from hpcviews.errors import SerializationError
from hpcviews.ids import Digest
from hpcviews.wire.pool import Lease, LeasedFrame, Pool
from hpcviews.wire.reference import ReferenceFailed
from hpcviews.wire.shared import HANDLE_BYTES_MAX, count_bytes, map_handles

ZERO_COPY_BYTES_MIN = 64 * 2**10
"""Buffers from this size on travel as frames of their own, uncopied. Below, libzmq's bookkeeping for a foreign
buffer costs more than the copy (it is also pyzmq's default copy_threshold)."""

INLINE_BYTES_MAX = 64 * 2**10
"""A pickle head up to this size travels inside the message."""

assert min(ZERO_COPY_BYTES_MIN, INLINE_BYTES_MAX) > HANDLE_BYTES_MAX, "a buffer's frame could be taken for a handle"

PACK_BYTES = 2**20
"""A strided array is written into shared memory in contiguous pieces of about this size: they fit a core's cache."""


class Payload(NamedTuple):
    """A serialized object: `data` goes into the message, `frames` behind it."""

    data: bytes
    frames: list[zmq.Frame]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return len(self.data) + sum(len(frame) for frame in self.frames)

    @property
    def full_nbytes(self) -> int:
        """Bytes with what is in shared memory."""
        return len(self.data) + count_bytes(self.frames)[0]

    def tracker(self) -> zmq.MessageTracker | None:
        """Done when libzmq has let go of every uncopied buffer; None when the payload was not tracked."""
        trackers = [frame.tracker for frame in self.frames if frame.tracker is not None]
        return zmq.MessageTracker(*trackers) if trackers else None


EMPTY = Payload(b"", [])


FindPool = Callable[[], Pool | None]
"""Finds the pool for big buffers; asked when there is one, None for no pool."""


def dumps(
    obj: Any,
    *,
    track: bool = False,
    engine_names: Collection[str] = (),
    find_pool: FindPool | None = None,
    share_bytes_min: int = 0,
) -> Payload:
    """Serialize `obj`.

    Args:
        obj: Anything that cloudpickle can pickle.
        track: Make frames that tell when they are sent (`Payload.tracker`).
        engine_names: Globals of ``__main__`` that functions find on the engine, so they need not travel.
        find_pool: Where big buffers may go into shared memory, if all receivers can open it.
        share_bytes_min: How big.
    Raises:
        SerializationError: It cannot be pickled; the message says what.
    """
    buffers = _Buffers(track, find_pool, max(share_bytes_min, ZERO_COPY_BYTES_MIN))
    sink = io.BytesIO()
    try:
        _Pickler(sink, buffers, engine_names).dump(obj)
    except Exception as error:
        raise SerializationError(f"cannot pickle {_describe(obj)}: {error}") from error
    frames = buffers.frames
    size = sink.tell()
    if size <= INLINE_BYTES_MAX:
        return Payload(sink.getvalue(), frames)
    return Payload(b"", [zmq.Frame(sink.getbuffer(), track=track, copy=False), *frames])


class _Buffers:
    """The out-of-band buffers of one payload, in order: frames, or handles of what was written into a segment."""

    def __init__(self, track: bool, find_pool: FindPool | None, share_bytes_min: int):
        self.frames: list[zmq.Frame] = []
        self.lease: Lease | None = None
        self._track = track
        self._find_pool = find_pool
        self._share_bytes_min = share_bytes_min
        self._packed: dict[int, tuple[Any, zmq.Frame]] = {}

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's callback; True has it put the buffer into the pickle."""
        view = buffer.raw()
        packed = self._packed.pop(id(view.obj), None)
        if packed is not None:
            self.frames.append(packed[1])
            return False
        if view.nbytes < ZERO_COPY_BYTES_MIN:
            return True
        handle = self._share([view], view.nbytes)
        self.frames.append(handle or zmq.Frame(view, track=self._track, copy=False))
        return False

    def pack(self, numpy: Any, array: Any) -> Any:
        """Write a strided array into shared memory without making it contiguous before.

        Returns:
            An array that stands for its bytes when `take` is asked; None when it does not go into shared memory.
        """
        pieces = (memoryview(piece.reshape(-1).view(numpy.uint8)) for piece in _cut_contiguous(numpy, array))
        handle = self._share(pieces, array.nbytes)
        if handle is None:
            return None
        stand_in = numpy.empty(1, numpy.uint8)
        self._packed[id(stand_in)] = stand_in, handle
        return stand_in

    def _share(self, parts: Iterable[memoryview], nbytes: int) -> zmq.Frame | None:
        if nbytes < self._share_bytes_min or self._find_pool is None:
            return None
        if self.lease is None:
            pool = self._find_pool()
            self.lease = pool.take(nbytes) if pool is not None else None
            if self.lease is None:
                self._find_pool = None
                return None
        handle = self.lease.write(parts, nbytes)
        if handle is not None:
            return LeasedFrame(handle, self.lease)
        self._find_pool = None  # full: the rest goes as frames
        if self.lease.is_empty:
            self.lease = None
        return None


def loads(data: bytes, frames: Sequence[zmq.Frame]) -> Any:
    """The object of a payload. Its big buffers alias `frames`, or private maps of shared memory, and are writable.

    Raises:
        SerializationError: It cannot be unpickled here; the message says what is missing.
    """
    buffers = [frame.buffer for frame in map_handles(frames)]
    try:
        if data:
            return pickle.loads(data, buffers=buffers)
        return pickle.loads(buffers[0], buffers=buffers[1:])
    except ReferenceFailed as failed:
        raise failed.error from None  # an undefined name is a NameError of the user's, not a broken payload
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError):
            hint = "; the module must be importable there too (on engines: installed, or in a directory of sys.path)"
        raise SerializationError(f"cannot unpickle: {type(error).__name__}: {error}{hint}") from error


def digest(payload: Payload) -> Digest:
    """Name of a serialized function."""
    import hashlib  # 4 ms of OpenSSL that engines do not need

    state = hashlib.blake2b(payload.data, digest_size=16)
    for frame in payload.frames:
        state.update(frame.buffer)
    return Digest(state.digest())


def _describe(obj: Any) -> str:
    """What was to be pickled, down to the part that cannot be, if it is near the top."""
    if isinstance(obj, tuple) and len(obj) == 2 and isinstance(obj[0], tuple) and isinstance(obj[1], dict):
        named = [(f"argument {i}", value) for i, value in enumerate(obj[0])]
        named += [(f"argument {key!r}", value) for key, value in obj[1].items()]
    elif isinstance(obj, dict):
        named = [(f"{key!r}", value) for key, value in obj.items()]
    else:
        named = []
    for name, value in named:
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001 - the same user code as above
            return f"{name} (a {type(value).__name__})"
    return f"a {type(obj).__name__}"


# ---------------------------------------------------------------- arrays


def _find_reduction(numpy: Any, kind: type, array: Any, buffers: _Buffers) -> tuple[Any, ...] | None:
    """How an array or an instance of a subclass is pickled; None: as its class has it."""
    if array.dtype.hasobject or not array.dtype.itemsize:
        return None
    if kind is numpy.ndarray:
        return _reduce_array(numpy, array, buffers)
    if kind is numpy.memmap:
        return _reduce_array(numpy, array.view(numpy.ndarray), buffers)  # there it is not the file any more
    if kind is numpy.ma.MaskedArray:
        mask = numpy.ma.getmask(array)
        rest = {"fill_value": array._fill_value, "hard_mask": array.hardmask}
        return _rebuild_masked, (array.data, None if mask is numpy.ma.nomask else mask, rest, array._optinfo)
    if all(getattr(kind, name) is getattr(numpy.ndarray, name) for name in _REDUCTION):
        plain = array.view(numpy.ndarray)
        attributes = getattr(array, "__dict__", None) or None
        return _rebuild_subclass, (plain, kind), attributes, None, None, _set_attributes
    return None


_REDUCTION = ("__reduce__", "__reduce_ex__", "__setstate__")


def _rebuild_masked(data: Any, mask: Any, rest: dict[str, Any], notes: dict[str, Any]) -> Any:
    import numpy

    array: Any = numpy.ma.MaskedArray(data, numpy.ma.nomask if mask is None else mask, copy=False, **rest)
    array._sharedmask = False  # else the first write to the mask copies it
    array._optinfo.update(notes)
    return array


def _rebuild_subclass(plain: Any, kind: type) -> Any:
    return plain.view(kind)


def _set_attributes(array: Any, attributes: dict[str, Any]) -> None:
    array.__dict__.update(attributes)


def _reduce_array(numpy: Any, array: Any, buffers: _Buffers) -> tuple[Any, ...]:
    """Like numpy's own protocol 5 reduction, for the cases too that numpy puts in band or makes read-only.

    Those are strided arrays, datetime64 and read-only ones.
    """
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        packed = buffers.pack(numpy, array)
        if packed is not None:
            return _rebuild_array, (pickle.PickleBuffer(packed), array.dtype, array.shape, "C")
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        order, flat = "F", array.T.reshape(-1)
    else:
        order, flat = "C", numpy.ascontiguousarray(array).reshape(-1)  # copies only what is strided
    # As bytes: the buffer protocol has no word for datetime64.
    return _rebuild_array, (pickle.PickleBuffer(flat.view(numpy.uint8)), array.dtype, array.shape, order)


def _rebuild_memoryview(buffer: Any, format: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer)
    if len(format.lstrip("@")) != 1 or not view.nbytes:
        return view  # Python's memoryviews can be cast to nothing else than native single items
    cast: Any = view.cast  # typeshed wants a literal format
    shaped: memoryview = cast(format, shape)
    return shaped


def _cut_contiguous(numpy: Any, array: Any) -> Iterator[Any]:
    """A strided array in contiguous pieces, in C order; each is a copy of about PACK_BYTES."""
    rows = len(array)
    if array.ndim > 1 and array.nbytes // rows > 2 * PACK_BYTES:
        for row in array:
            yield from _cut_contiguous(numpy, row)
        return
    step = max(1, PACK_BYTES // (array.nbytes // rows))
    for start in range(0, rows, step):
        yield numpy.ascontiguousarray(array[start : start + step])


def _rebuild_array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    import numpy

    view = memoryview(buffer)
    if view.readonly:
        # The sender's array was read-only; pickle shows us the received memory as read-only too, but it is ours.
        ours = memoryview(view.obj)
        view = ours if not ours.readonly else memoryview(bytearray(view))
    return numpy.ndarray(shape, dtype, view, order=order)


# ---------------------------------------------------------------- functions of __main__


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # cloudpickle is untyped
    def __init__(
        self,
        sink: io.BytesIO,
        buffers: _Buffers,
        engine_names: Collection[str],
    ):
        super().__init__(sink, protocol=5, buffer_callback=buffers.take)
        self._buffers = buffers
        self._engine_names = engine_names

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is memoryview:
            plain = pickle.PickleBuffer(obj if obj.c_contiguous else obj.tobytes())
            return _rebuild_memoryview, (plain, obj.format, obj.shape)
        if kind is types.CodeType:
            return self._reduce_code(obj)
        numpy = sys.modules.get("numpy")
        if numpy is not None and issubclass(kind, numpy.ndarray):
            found = _find_reduction(numpy, kind, obj, self._buffers)
            if found is not None:
                return found
        reduced = super().reducer_override(obj)
        if kind is types.FunctionType and obj.__module__ == "__main__" and isinstance(reduced, tuple):
            return self._reduce_main_function(obj, reduced)
        return reduced

    def _reduce_code(self, code: types.CodeType) -> tuple[Any, ...]:
        # cloudpickle 3.1.3 takes the file name away, and with it the source lines from tracebacks.
        make, arguments = self.dispatch_table[types.CodeType](code)
        return _make_code, (code.co_filename, make, arguments)

    def _reduce_main_function(self, function: types.FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        # cloudpickle gives a function private globals holding only what it uses. Replace them by the
        # receiver's namespace, and install what it uses by our rule instead of cloudpickle's update().
        (make, (code, _own_globals, *rest), (attributes, slots), items, pairs, set_state) = reduced
        captured = {k: v for k, v in slots["__globals__"].items() if k not in self._engine_names}
        slots = {**slots, "__globals__": {}}
        state = (captured, set_state, (attributes, slots))
        return make, (code, _MAIN_GLOBALS, *rest), state, items, pairs, _set_main_function_state


def _make_code(filename: str, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]) -> types.CodeType:
    return make(*arguments).replace(co_filename=filename)


class _MainGlobals:
    """Stands for the globals of ``__main__`` in a pickle."""

    def __reduce__(self) -> Any:
        return _main_globals, ()


_MAIN_GLOBALS = _MainGlobals()


def _main_globals() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


_captured: dict[str, Any] = {}
"""Globals in ``__main__`` that came with a function, not by an assignment there."""


def _set_main_function_state(function: types.FunctionType, state: Any) -> None:
    captured, set_state, rest = state
    set_state(function, rest)
    _install_captured(captured)
    if captured:
        # A later function may bring another value of the same name; `refresh_captured` puts ours back.
        function.__dict__["__hpcviews_captured__"] = captured


def _install_captured(captured: dict[str, Any]) -> None:
    """Bind the names a function brought along, unless the namespace has them by assignment.

    So what was pushed, scattered or assigned on an engine always wins, and of captured values the latest.
    """
    namespace = _main_globals()
    missing = object()
    for name, value in captured.items():
        present = namespace.get(name, missing)
        if present is missing or present is _captured.get(name, missing):
            namespace[name] = _captured[name] = value


def refresh_captured(function: Any) -> None:
    """Before calling a function that was unpickled earlier: make its own captured globals current."""
    captured = getattr(function, "__hpcviews_captured__", None)
    if captured:
        _install_captured(captured)


def forget_captured() -> None:
    """After the namespace was cleared."""
    _captured.clear()
