"""Access files: who may read and use them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from hpcviews.errors import AccessRefused, NoCluster
from hpcviews.wire.access import Access, read_access, write_access

ACCESS = Access("client", "c", "g", "0.1.0", "3.11", "h", "id", ["ipc:///x", "tcp://1.2.3.4:5"], "SK", "PK", "SECRET")


def test_written_file_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    old = os.umask(0)
    try:
        write_access(path, ACCESS)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_access(path, "client") == ACCESS
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left"


def test_secret_is_not_in_the_repr() -> None:
    assert "SECRET" not in f"{ACCESS} {ACCESS!r}"


def test_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    write_access(path, ACCESS)
    path.chmod(0o640)
    with pytest.raises(AccessRefused, match="chmod 600"):
        read_access(path, "client")


def test_missing_damaged_and_wrong_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match="hpcviews list"):
        read_access(tmp_path / "none.json", "client")
    path = tmp_path / "x.json"
    for content in (b"", b"{", b"[]", msgspec.json.encode({"role": "client"}), os.urandom(100)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(AccessRefused, match="not a connection file"):
            read_access(path, "client")
    write_access(path, ACCESS)
    with pytest.raises(AccessRefused, match="needs role 'engine'"):
        read_access(path, "engine")


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    write_access(tmp_path / "real.json", ACCESS)
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(AccessRefused):
        read_access(tmp_path / "link.json", "client")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's file: sudo make test")
def test_another_users_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    write_access(path, ACCESS)
    os.chown(path, 65534, 65534)
    with pytest.raises(AccessRefused, match="belongs to user nobody"):
        read_access(path, "client")
