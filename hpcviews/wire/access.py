"""Access files: what a client or an engine needs to reach a controller, secrets included.

One file per role, 0600, written atomically into the cluster's 0700 directory. Only the path of such a file ever
appears in argv or the environment.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path

import msgspec

from hpcviews.errors import AccessRefused, NoCluster


class Access(msgspec.Struct, frozen=True):
    """Contents of an access file."""

    role: str
    """"client" or "engine": whose key this is."""
    cluster: str
    generation: str
    version: str
    python: str
    host: str
    host_id: str
    """`read_host_id()` where the controller runs: who has the same may use the ipc endpoint."""
    endpoints: list[str]
    """Every address of the controller; ``ipc://`` first."""
    server_key: str
    public_key: str
    secret_key: str

    def __repr__(self) -> str:  # the secret key must not reach a log by way of an f-string
        return f"<Access {self.role} of {self.cluster!r} at {', '.join(self.endpoints)}>"


def read_host_id() -> str:
    """Identifies this running operating system and its view of the file system.

    Who has the same as the controller can open its ipc socket. The host name would not do: containers and
    images share names.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/mnt').stat().st_ino}"


def get_python_version() -> str:
    """Major and minor: what pickled functions depend on."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def write_private(path: Path, content: bytes) -> None:
    """Write a 0600 file so that readers see the old content or the new, and nobody else sees either."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a controller on another node reads it through a network file system
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_access(path: Path, access: Access) -> None:
    """Write an access file."""
    write_private(path, msgspec.json.format(msgspec.json.encode(access)))


def read_access(path: Path, role: str) -> Access:
    """Read the access file of `role`.

    Raises:
        NoCluster: There is no such file.
        AccessRefused: It is another user's, readable by others, damaged, or of another role.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NoCluster(
            f"no connection file {path}: the cluster has ended or never started; see `hpcviews list`"
        ) from None
    except PermissionError:
        raise AccessRefused(f"connection file {path} may not be read{_owned_by(path)}") from None
    except OSError as error:
        raise AccessRefused(f"connection file {path} cannot be opened: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid():
            raise AccessRefused(
                f"connection file {path} belongs to user {_user_name(status.st_uid)}; "
                "clusters are used by the user who started them"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise AccessRefused(
                f"connection file {path} can be read by others (mode {stat.S_IMODE(status.st_mode):o}), so its key "
                f"may have been seen; stop the cluster, or if you are sure: chmod 600 {path}"
            )
        content = file.read(2**20)
    try:
        access = msgspec.json.decode(content, type=Access)
    except msgspec.MsgspecError as error:
        raise AccessRefused(f"{path} is not a connection file of hpcviews: {error}") from None
    if access.role != role:
        raise AccessRefused(f"{path} holds the key of role {access.role!r}, and this needs role {role!r}")
    return access


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _owned_by(path: Path) -> str:
    try:
        return f": it belongs to user {_user_name(path.stat().st_uid)}"
    except OSError:
        return ": its directory belongs to another user"
