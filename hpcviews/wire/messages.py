"""Every message of the protocol, one class each; nothing else decides what travels.

A zmq message is ``[header, frame, frame, …]``. The header is one byte (the protocol's number) and a msgpack
list of the messages below: any messages may share one zmq message, in order, which is how small ones are
batched at every hop. A `Carrier` owns the next `frames` of the frames behind the header.

Direction is written in each docstring: C client, K controller, E engine.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

PROTOCOL = 2
"""Raised whenever a message changes in a way that the other side must know. Checked on every header."""


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages. Immutable: the same object may go to many peers."""


class Carrier(Message, array_like=True, frozen=True, gc=False):
    """Base of the messages with a payload (see wire/payload.py).

    `data` is the pickle's head when it is small, and then costs a copy; `frames` counts the zmq frames that
    belong to this message: the head when it is big, and the out-of-band buffers, or handles of those in shared
    memory. The controller forwards them unread, the frames uncopied.
    """

    data: bytes
    frames: int


# ---------------------------------------------------------------- records inside messages


class EngineInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What everyone may know of a registered engine."""

    id: int
    uuid: str
    set_id: int
    index: int
    """Number inside its engine set, from 0; its rank where the set is an MPI world."""
    rank: int | None
    world_size: int | None
    local_rank: int
    """Number among the engines of its set on its node, from 0."""
    host: str
    pid: int
    python: str
    mpi: str
    """The MPI library's name and version, "" without MPI."""
    registered: float
    """Unix time, seconds."""
    room: str = ""
    """Whom it shares memory with: parties with the same token (see wire/room.py); "" for nobody."""


class EngineLeft(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An engine that is gone, and why."""

    id: int
    why: str


class SetInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An engine set as clients see it."""

    id: int
    launcher: str
    n: int
    state: str
    """A `SetPhase` value of controller/state.py."""
    why: str
    """Reason of a failure in words, with the tail of the log, else ""."""
    error: str
    """Name of the class in errors.py that `why` is raised as, else ""."""
    log: str
    """Path of the starter's log file, "" when there is none."""


class ErrorInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A failed request. The carrier's payload is the pickled original exception, if there is one."""

    ename: str
    evalue: str
    traceback: str
    local: bool
    """True: an error of ours, raised as the class of that name in errors.py. False: user code raised."""
    rank: int | None = None
    host: str = ""
    pid: int = 0
    method: str = ""


class DependencyInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Requests, of any client and any queue, that a task depends on."""

    msg_ids: list[str]
    """Each once; consecutive ones as ``SESSION-FIRST..LAST`` (ids.py), so that a whole map is one short text."""
    all: bool
    """True: on all of them; False: on any one of them."""
    success: bool
    """One that ended well satisfies it."""
    failure: bool
    """One that failed satisfies it."""


class Conditions(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a task waits for beside a free engine."""

    after: DependencyInfo | None = None
    """Run only after these have ended."""
    follow: DependencyInfo | None = None
    """Run only on an engine where these ran."""
    timeout_s: float = 0.0
    """Longest time until an engine begins it; 0: no limit."""


# ---------------------------------------------------------------- finding each other


class Probe(Message, tag="probe", array_like=True, frozen=True, gc=False):
    """C,E→K: who is at this address? Sent to all addresses at once; the first answer is used."""


class ProbeReply(Message, tag="here", array_like=True, frozen=True, gc=False):
    """K→C,E: this cluster is."""

    cluster: str
    generation: str
    """Random name of this life of the controller, to tell it from an earlier one at the same address."""


class ClientHello(Message, tag="client", array_like=True, frozen=True, gc=False):
    """C→K: first message of a client on each connection."""

    version: str
    python: str
    session: str
    host: str
    pid: int
    room: str = ""
    """Whom it shares memory with; see EngineInfo."""
    party: str = ""
    """What the names of its segments have in them; another one on each connection."""


class EngineHello(Message, tag="engine", array_like=True, frozen=True, gc=False):
    """E→K: first message of an engine on each connection."""

    version: str
    python: str
    info: EngineInfo
    """With id -1, or the id it had before the connection broke."""
    failure: str
    """Why this engine cannot serve ("" if it can): a world of the wrong size, an MPI of another make."""
    party: str = ""
    """As in ClientHello."""


class Refused(Message, tag="refused", array_like=True, frozen=True, gc=False):
    """K→C,E: your hello is not accepted. This message's layout never changes."""

    error: str
    """Name of the class in errors.py."""
    text: str


class Welcome(Message, tag="welcome", array_like=True, frozen=True, gc=False):
    """K→C: hello accepted."""

    cluster: str
    generation: str
    engines: list[EngineInfo]
    sets: list[SetInfo]
    room: str = ""
    """Whom the controller shares memory with: it can hand on what is there to anybody else."""


class EngineWelcome(Message, tag="welcome-engine", array_like=True, frozen=True, gc=False):
    """K→E: hello accepted; from now on you are this engine."""

    id: int


class EnginesJoined(Message, tag="joined", array_like=True, frozen=True, gc=False):
    """K→C: engines that registered."""

    engines: list[EngineInfo]


class EnginesLeft(Message, tag="left", array_like=True, frozen=True, gc=False):
    """K→C: engines that are gone."""

    engines: list[EngineLeft]


class SetChanged(Message, tag="set", array_like=True, frozen=True, gc=False):
    """K→C: an engine set moved to another state."""

    info: SetInfo


class ClientLeave(Message, tag="leave", array_like=True, frozen=True, gc=False):
    """C→K: this client closes; what it queued may run, nobody waits for it."""


class EngineLeave(Message, tag="leave-engine", array_like=True, frozen=True, gc=False):
    """E→K: this engine ends by itself."""

    why: str


# ---------------------------------------------------------------- functions


class Function(Carrier, tag="f", array_like=True, frozen=True, gc=False):
    """C→K→E: a pickled function, once per receiver; later messages name it by digest."""

    digest: bytes


class ForgetFunction(Message, tag="ff", array_like=True, frozen=True, gc=False):
    """C→K→E: the sender will not name this digest again without sending it again."""

    digest: bytes


# ---------------------------------------------------------------- requests and results


class Request(Carrier, tag="q", array_like=True, frozen=True, gc=False):
    """C→K: run on each of these engines. Their requests are numbered seq, seq + 1, … in the order of targets."""

    seq: int
    targets: list[int]
    op: str
    """What to do: a name in engine/operations.py. The controller does not read it."""
    function: bytes
    """Digest of a Function sent before, b"" for operations without one."""
    label: str = ""
    """The user's own word for it."""
    may_share: bool = False
    """Results may come by shared memory."""


class Task(Carrier, tag="t", array_like=True, frozen=True, gc=False):
    """C→K: run on one engine, which the scheduler chooses."""

    seq: int
    op: str
    function: bytes
    targets: list[int] | None
    """Engines that may run it; None: any."""
    retries: int
    """How often it may be tried again after a failure or the loss of its engine."""
    label: str = ""
    conditions: Conditions | None = None
    """None for the many tasks that have none: they must stay short."""
    may_share: bool = False
    """Its result may come by shared memory."""


class Run(Carrier, tag="r", array_like=True, frozen=True, gc=False):
    """K→E: one attempt at one request."""

    key: int
    op: str
    function: bytes
    may_share: bool = False
    """Big buffers of the value may go into shared memory: whoever asked can open it. Answered by Delivered."""


class Done(Carrier, tag="d", array_like=True, frozen=True, gc=False):
    """E→K: that attempt ended. Payload: the value, or the original exception."""

    key: int
    started: float
    completed: float
    error: ErrorInfo | None


class Result(Carrier, tag="R", array_like=True, frozen=True, gc=False):
    """K→C: request `seq` ended, on `engine` (-1: on none)."""

    seq: int
    engine: int
    started: float
    completed: float
    error: ErrorInfo | None


class RunOutput(Message, tag="ro", array_like=True, frozen=True, gc=False):
    """E→K: text that user code wrote while attempt `key` ran; before its Done."""

    key: int
    stream: str
    text: str


class Output(Message, tag="o", array_like=True, frozen=True, gc=False):
    """K→C: the same, for request `seq`."""

    seq: int
    engine: int
    stream: str
    text: str


class RunPublished(Carrier, tag="rp", array_like=True, frozen=True, gc=False):
    """E→K: something beside text that user code showed while attempt `key` ran; before its Done.

    Payload, by `kind`: "display", a dict with the keys data and metadata (MIME types to contents) and transient;
    "data", a dict that user code published.
    """

    key: int
    kind: str


class Published(Carrier, tag="p", array_like=True, frozen=True, gc=False):
    """K→C: the same, for request `seq`."""

    seq: int
    engine: int
    kind: str


# ---------------------------------------------------------------- shared memory


class Mapped(Message, tag="mapped", array_like=True, frozen=True, gc=False):
    """C→K: what the results of these requests have in shared memory is mapped here."""

    seqs: list[int]


class Delivered(Message, tag="delivered", array_like=True, frozen=True, gc=False):
    """K→E: nobody will come to map what the Done of these attempts has in shared memory."""

    keys: list[int]


class ClearSegments(Message, tag="clear", array_like=True, frozen=True, gc=False):
    """K→E: remove the segments of this party, which is gone. To an engine that shares memory with it."""

    party: str


# ---------------------------------------------------------------- taking back


class Abort(Message, tag="abort", array_like=True, frozen=True, gc=False):
    """C→K: end these requests with TaskAborted if they have not started."""

    seqs: list[int]
    """Of this client; also numbers under which it follows requests of others."""
    msg_ids: list[str] = []
    """Of any client."""
    engines: list[int] | None = None
    """Only those that these engines hold; None: wherever they are."""
    seq: int | None = None
    """Acknowledge under this number that it is being done; None: do not."""


class Withdraw(Message, tag="w", array_like=True, frozen=True, gc=False):
    """K→E: give these attempts back if they have not started."""

    keys: list[int]


class Withdrawn(Message, tag="W", array_like=True, frozen=True, gc=False):
    """E→K: answer to Withdraw: these had not started and will not run; the others have started."""

    keys: list[int]
    refused: list[int]


# ---------------------------------------------------------------- interrupting and ending engines


class Acknowledged(Message, tag="ok", array_like=True, frozen=True, gc=False):
    """K→C: what `seq` asked for is done, or why it is not."""

    seq: int
    error: ErrorInfo | None = None


class SignalEngines(Message, tag="sig", array_like=True, frozen=True, gc=False):
    """C→K: send a signal to these engines' processes. Answer: Acknowledged, when it has left for all of them."""

    seq: int
    targets: list[int]
    signum: int


class EngineSignal(Message, tag="sig-engine", array_like=True, frozen=True, gc=False):
    """K→E: send this signal to yourself."""

    signum: int


class InterruptRequests(Message, tag="int", array_like=True, frozen=True, gc=False):
    """C→K: raise KeyboardInterrupt in these requests where they run; abort them where they have not started."""

    seqs: list[int]


class InterruptRuns(Message, tag="int-engine", array_like=True, frozen=True, gc=False):
    """K→E: raise KeyboardInterrupt in user code if it is running one of these attempts."""

    keys: list[int]


class EndEngines(Message, tag="end", array_like=True, frozen=True, gc=False):
    """C→K: end these engines. Answer: Acknowledged, when they are gone ("restart": and others are being started).

    `how`: "stop" asks them to, "kill" does not, "restart" stops them and has their launcher start others with
    their ids.
    """

    seq: int
    targets: list[int]
    how: str


# ---------------------------------------------------------------- what has been asked before


class Follow(Message, tag="follow", array_like=True, frozen=True, gc=False):
    """C→K: give us the results of these requests, of any client, as if they were our requests seq, seq + 1, …

    Each is answered by Followed, its output and its Result, at once if it has ended, else when it ends; or by a
    Result with the error NoSuchRequest.
    """

    seq: int
    msg_ids: list[str]


class Followed(Message, tag="followed", array_like=True, frozen=True, gc=False):
    """K→C: what request `seq` of a Follow is."""

    seq: int
    submitted: float
    label: str


class Resubmit(Message, tag="again", array_like=True, frozen=True, gc=False):
    """C→K: run these requests once more, as tasks numbered seq, seq + 1, …

    Those that are not known any more, or whose payload was too big to keep, end with NoSuchRequest.
    """

    seq: int
    msg_ids: list[str]


class Purge(Message, tag="purge", array_like=True, frozen=True, gc=False):
    """C→K: forget the records of finished requests: these, or all (None), and those that ran on these engines.

    Answer: Acknowledged; with an error if one of them is unfinished, and then nothing was forgotten.
    """

    seq: int
    msg_ids: list[str] | None
    engines: list[int]


class RecordQuery(Message, tag="db?", array_like=True, frozen=True, gc=False):
    """C→K: the records of requests, finished or not, that match a query; see controller/record_query.py."""

    seq: int
    query: dict[str, Any]
    keys: list[str] | None
    """Which fields of each record; None: all of them. msg_id is always there."""


class Records(Message, tag="db", array_like=True, frozen=True, gc=False):
    """K→C: answer to RecordQuery, in the order the requests were submitted. Times are Unix times in seconds."""

    seq: int
    records: list[dict[str, Any]]
    error: ErrorInfo | None = None


class QueueQuery(Message, tag="queue?", array_like=True, frozen=True, gc=False):
    """C→K: what waits where?"""

    seq: int
    targets: list[int]
    verbose: bool


class EngineQueue(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An engine in a QueueStatus: numbers, and with `verbose` the msg_ids."""

    id: int
    queue: int
    """Requests for this engine that have not been answered."""
    completed: int
    tasks: int
    """Tasks of the scheduler it holds."""
    queue_ids: list[str]
    completed_ids: list[str]
    """Those of which the controller still has a record."""
    task_ids: list[str]


class QueueStatus(Message, tag="queue", array_like=True, frozen=True, gc=False):
    """K→C: answer to QueueQuery."""

    seq: int
    engines: list[EngineQueue]
    unassigned: int
    """Tasks that wait for an engine or for other requests."""
    unassigned_ids: list[str]
    error: ErrorInfo | None = None


# ---------------------------------------------------------------- the cluster itself


class StatusQuery(Message, tag="status?", array_like=True, frozen=True, gc=False):
    """C→K: tell what runs."""

    seq: int


class EngineStatus(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An engine in a Status."""

    info: EngineInfo
    state: str
    """"idle", "busy" or "lost"."""
    why: str
    """Why it is lost, else ""."""
    queued: int
    """Requests handed to it and not answered."""
    completed: int


class Status(Message, tag="status", array_like=True, frozen=True, gc=False):
    """K→C: answer to StatusQuery."""

    seq: int
    state: str
    host: str
    pid: int
    version: str
    started: float
    endpoints: list[str]
    clients: int
    waiting_tasks: int
    malformed: int
    engines: list[EngineStatus]
    sets: list[SetInfo]


class StopCluster(Message, tag="stop", array_like=True, frozen=True, gc=False):
    """C→K: end the engines, then yourself. The connection closes when it is done."""


class EngineStop(Message, tag="stop-engine", array_like=True, frozen=True, gc=False):
    """K→E: end now."""

    why: str
    finalize: bool
    """Every rank of the world ends with you, so MPI_Finalize (collective) can complete."""


ToController = Union[  # noqa: UP007 - msgspec wants a Union it can read on Python 3.10
    Probe,
    ClientHello,
    EngineHello,
    ClientLeave,
    EngineLeave,
    Function,
    ForgetFunction,
    Request,
    Task,
    Done,
    RunOutput,
    RunPublished,
    Mapped,
    Abort,
    Withdrawn,
    SignalEngines,
    InterruptRequests,
    EndEngines,
    Follow,
    Resubmit,
    Purge,
    RecordQuery,
    QueueQuery,
    StatusQuery,
    StopCluster,
]
ToClient = Union[  # noqa: UP007
    ProbeReply,
    Refused,
    Welcome,
    EnginesJoined,
    EnginesLeft,
    SetChanged,
    Result,
    Output,
    Published,
    Acknowledged,
    Followed,
    Records,
    QueueStatus,
    Status,
]
ToEngine = Union[  # noqa: UP007
    ProbeReply,
    Refused,
    EngineWelcome,
    Function,
    ForgetFunction,
    Run,
    Delivered,
    ClearSegments,
    Withdraw,
    EngineSignal,
    InterruptRuns,
    EngineStop,
]
