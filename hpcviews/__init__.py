"""Python on a cluster through views: MPI engines, direct and load-balanced views, zero-copy numpy arrays.

with hpcviews.Cluster(n=4) as rc:
    rc[:].map_sync(lambda x: x ** 2, range(10))
"""

# The layout. Imports go one way, downwards in this list:
#   errors, ids, environment, records   exceptions, identifiers, what comes from outside
#   wire/        the messages, their encoding, payloads without copies, access files, sockets
#   controller/  one process between clients and engines: a pure core, and a loop that owns the sockets
#   engine/      runs user code: main thread for it and for MPI, an I/O thread for the socket
#   client/      Client, views and results, and the I/O thread behind them
#   cluster/     starts, finds and stops clusters; the records of launcher plug-ins
#   cli/         the command `hpcviews`
#   notebook/    magics for IPython
#   bridges/     backends for other libraries: joblib
# The three roles never import each other. The built-in launchers are the package hpcviews_launchers.
# Names below are imported when they are first used, so an engine never loads what only clients need.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hpcviews.bridges.joblib import register_joblib_backend
    from hpcviews.client.balanced_view import LoadBalancedView
    from hpcviews.client.broadcast_view import BroadcastView
    from hpcviews.client.client import Client
    from hpcviews.client.dependency import Dependency
    from hpcviews.client.direct_view import DirectView
    from hpcviews.client.executor import ViewExecutor
    from hpcviews.client.lazy_map import LazyMapIterator
    from hpcviews.client.map_result import AsyncMapResult
    from hpcviews.client.remote_function import ParallelFunction, RemoteFunction, parallel, remote
    from hpcviews.client.results import AsyncResult
    from hpcviews.client.view import View
    from hpcviews.cluster.cluster import Cluster
    from hpcviews.engine.publishing import publish_data
    from hpcviews.errors import (
        AccessRefused,
        AlreadyDisplayedError,
        CompositeError,
        ConnectError,
        ControllerLost,
        ControllerUnreachable,
        DependencyTimeout,
        EngineError,
        HpcviewsError,
        ImpossibleDependency,
        InvalidDependency,
        LaunchError,
        LauncherUnavailable,
        MpiMismatch,
        NameInUse,
        NoCluster,
        NoEnginesRegistered,
        NoShow,
        NoSuchEngine,
        NoSuchRequest,
        NotEnoughFiles,
        OutstandingRequests,
        PlaneUnavailable,
        PollFailed,
        ProtocolError,
        RemoteError,
        ResultNotKept,
        SerializationError,
        SubmitRefused,
        TaskAborted,
        TaskTimeout,
        UnknownLauncher,
        UnmetDependency,
        UsageError,
        VersionMismatch,
    )
    from hpcviews.wire.dependent import depend, dependent, interactive, require
    from hpcviews.wire.reference import Reference

# Beside public names: what the client has to call in layers above it, which need not be installed.
_HOMES = {
    "AsyncMapResult": "hpcviews.client.map_result",
    "AsyncResult": "hpcviews.client.results",
    "BroadcastView": "hpcviews.client.broadcast_view",
    "Client": "hpcviews.client.client",
    "Cluster": "hpcviews.cluster.cluster",
    "Dependency": "hpcviews.client.dependency",
    "DirectView": "hpcviews.client.direct_view",
    "LazyMapIterator": "hpcviews.client.lazy_map",
    "LoadBalancedView": "hpcviews.client.balanced_view",
    "ParallelFunction": "hpcviews.client.remote_function",
    "Reference": "hpcviews.wire.reference",
    "RemoteFunction": "hpcviews.client.remote_function",
    "View": "hpcviews.client.view",
    "ViewExecutor": "hpcviews.client.executor",
    "depend": "hpcviews.wire.dependent",
    "dependent": "hpcviews.wire.dependent",
    "interactive": "hpcviews.wire.dependent",
    "parallel": "hpcviews.client.remote_function",
    "remote": "hpcviews.client.remote_function",
    "require": "hpcviews.wire.dependent",
    "activate_first": "hpcviews.notebook.activation",
    "activate_magics": "hpcviews.notebook.activation",
    "load_ipython_extension": "hpcviews.notebook.activation",
    "publish_data": "hpcviews.engine.publishing",
    "register_joblib_backend": "hpcviews.bridges.joblib",
}

__all__ = [
    "AccessRefused",
    "AlreadyDisplayedError",
    "AsyncMapResult",
    "AsyncResult",
    "BroadcastView",
    "Client",
    "Cluster",
    "CompositeError",
    "ConnectError",
    "ControllerLost",
    "ControllerUnreachable",
    "Dependency",
    "DependencyTimeout",
    "DirectView",
    "EngineError",
    "HpcviewsError",
    "ImpossibleDependency",
    "InvalidDependency",
    "LaunchError",
    "LauncherUnavailable",
    "LazyMapIterator",
    "LoadBalancedView",
    "MpiMismatch",
    "NameInUse",
    "NoCluster",
    "NoEnginesRegistered",
    "NoShow",
    "NoSuchEngine",
    "NoSuchRequest",
    "NotEnoughFiles",
    "OutstandingRequests",
    "ParallelFunction",
    "PlaneUnavailable",
    "PollFailed",
    "ProtocolError",
    "Reference",
    "RemoteError",
    "RemoteFunction",
    "ResultNotKept",
    "SerializationError",
    "SubmitRefused",
    "TaskAborted",
    "TaskTimeout",
    "UnknownLauncher",
    "UnmetDependency",
    "UsageError",
    "VersionMismatch",
    "View",
    "ViewExecutor",
    "__version__",
    "depend",
    "dependent",
    "interactive",
    "parallel",
    "publish_data",
    "register_joblib_backend",
    "remote",
    "require",
]


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module 'hpcviews' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "hpcviews.errors")), name)
    globals()[name] = value  # the next time it is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
