"""What is on disk of clusters: claiming, finding, judging, clearing away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from hpcviews import records
from hpcviews.errors import AccessRefused, LaunchError, NameInUse, NoCluster, UsageError
from hpcviews.records import Liveness, Record
from hpcviews.wire.access import Access, read_host_id, write_access


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("HPCVIEWS_HOME", str(path))
    monkeypatch.delenv("HPCVIEWS_CLUSTER", raising=False)
    return path


def make_record(name: str = "one", **changes: object) -> Record:
    """A cluster whose controller is this process."""
    start = records.find_process_start(os.getpid())
    assert start is not None
    record = Record(
        name=name,
        host=os.uname().nodename,
        host_id=read_host_id(),
        pid_namespace=records.read_pid_namespace(),
        pid=os.getpid(),
        pid_started=start,
        python=sys.executable,
        version="1",
        launcher="local",
        n=4,
        started=time.time(),
        cwd="/",
        generation="g",
    )
    return msgspec.structs.replace(record, **changes)


def make_access(name: str, role: str = "client") -> Access:
    return Access(role, name, "g", "1", "3.11", "h", "id", ["ipc:///x"], "server", "public", "secret")


def find_dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def claim_dead(name: str = "one", **changes: object) -> records.Place:
    return records.claim(make_record(name, pid=find_dead_pid(), **changes))


# ---------------------------------------------------------------- the home directory


def test_home_is_made_for_its_owner_alone(home: Path) -> None:
    assert records.open_home() == home
    assert home.stat().st_mode & 0o777 == 0o700


def test_home_that_others_may_look_into_is_refused(home: Path) -> None:
    home.mkdir(mode=0o755)
    with pytest.raises(AccessRefused, match=f"chmod 700 {home}"):
        records.open_home()


def test_home_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(AccessRefused, match="belongs to another user"):
        records.open_home()


def test_home_that_cannot_be_made_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCVIEWS_HOME", "/proc/none/home")
    with pytest.raises(LaunchError, match="set HPCVIEWS_HOME to a directory"):
        records.open_home()


def test_home_that_is_a_file_is_refused(home: Path) -> None:
    home.write_text("")
    home.chmod(0o600)
    with pytest.raises(AccessRefused, match="is not a directory"):
        records.open_home()


# ---------------------------------------------------------------- claiming


def test_claim_makes_a_private_directory_with_the_record() -> None:
    record = make_record()
    place = records.claim(record)
    assert place.directory.stat().st_mode & 0o777 == 0o700
    assert place.record.stat().st_mode & 0o777 == 0o600
    assert records.find_record(place) == record


def test_name_of_a_running_cluster_is_in_use() -> None:
    records.claim(make_record())
    with pytest.raises(NameInUse, match="hpcviews stop one"):
        records.claim(make_record())


def test_invalid_name_is_refused_before_anything_is_made(home: Path) -> None:
    with pytest.raises(UsageError):
        records.claim(make_record("../x"))
    assert not home.exists()


def test_name_of_a_dead_cluster_is_free_and_its_logs_are_kept() -> None:
    place = claim_dead(started=1.0)
    place.controller_log.write_text("last words")
    write_access(place.access("client"), make_access("one"))
    record = make_record()
    assert records.claim(record).directory == place.directory
    assert records.find_record(place) == record
    assert not place.access("client").exists()
    ended = records.find_ended("one")
    assert ended is not None
    assert ended.controller_log.read_text() == "last words"
    assert not ended.access("client").exists(), "secrets end with the cluster"


def test_of_many_claims_at_once_exactly_one_wins_even_over_a_dead_cluster() -> None:
    claim_dead(started=1.0)
    count = 8
    barrier = threading.Barrier(count)
    outcomes: list[str] = []

    def try_it() -> None:
        barrier.wait()
        try:
            records.claim(make_record())
            outcomes.append("won")
        except NameInUse:
            outcomes.append("lost")

    threads = [threading.Thread(target=try_it) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * (count - 1) + ["won"]


def test_full_disk_leaves_nothing_and_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(records, "write_private", fail)
    with pytest.raises(LaunchError, match=r"No space left on device; set HPCVIEWS_HOME"):
        records.claim(make_record())
    assert list((home / "clusters").iterdir()) == []


# ---------------------------------------------------------------- judging


def test_liveness_of_a_running_and_of_a_starting_controller() -> None:
    assert records.get_liveness(make_record()) is Liveness.RUNNING
    assert records.get_liveness(make_record(generation="")) is Liveness.STARTING


def test_controller_without_a_process_is_dead() -> None:
    assert records.get_liveness(make_record(pid=find_dead_pid())) is Liveness.DEAD


def test_process_that_got_the_controllers_number_later_is_not_the_controller() -> None:
    assert records.get_liveness(make_record(pid_started=1)) is Liveness.DEAD


def test_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert records.find_process_start(child.pid) is None
    finally:
        child.wait()


def test_controller_of_another_host_cannot_be_judged() -> None:
    record = make_record(host="elsewhere", host_id="another-boot/1", pid=find_dead_pid())
    assert records.get_liveness(record) is Liveness.ELSEWHERE


def test_controller_in_a_container_of_this_host_cannot_be_judged() -> None:
    record = make_record(pid_namespace=1, pid=find_dead_pid())
    assert records.get_liveness(record) is Liveness.ELSEWHERE


def test_controller_from_before_a_reboot_is_dead() -> None:
    assert records.get_liveness(make_record(host_id="another-boot/1")) is Liveness.DEAD


# ---------------------------------------------------------------- ending


def test_retire_keeps_logs_and_removes_secrets_and_socket(tmp_path: Path) -> None:
    private = tmp_path / f"{records.IPC_PREFIX}x"
    private.mkdir()
    (private / "controller").touch()
    record = make_record(ipc_directory=str(private))
    place = records.claim(record)
    write_access(place.access("engine"), make_access("one", "engine"))
    place.controller_log.write_text("words")
    kept = records.retire(place, record)
    assert not place.directory.exists()
    assert not private.exists()
    assert sorted(path.name for path in kept.directory.iterdir()) == ["cluster.json", "logs"]
    assert kept.controller_log.read_text() == "words"


def test_retire_removes_no_directory_that_is_not_an_ipc_directory(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    record = make_record(ipc_directory=str(precious))
    records.retire(records.claim(record), record)
    assert precious.exists()


def test_retire_twice_is_fine_and_never_touches_a_later_cluster_of_that_name() -> None:
    old = make_record(started=1.0)
    place = records.claim(old)
    records.retire(place, old)
    records.retire(place, old)
    new = make_record(started=2.0)
    records.claim(new)
    records.retire(place, old)
    assert records.find_record(place) == new


def test_logs_of_the_last_clusters_are_kept_and_older_ones_go(home: Path) -> None:
    for number in range(records.ENDED_KEPT + 3):
        record = make_record(f"c{number}")
        records.retire(records.claim(record), record)
    assert len(list((home / "ended").iterdir())) == records.ENDED_KEPT
    assert records.find_ended("c0") is None
    assert records.find_ended(f"c{records.ENDED_KEPT + 2}") is not None


# ---------------------------------------------------------------- finding


def test_the_only_cluster_is_found_without_a_name() -> None:
    write_access(records.claim(make_record()).access("client"), make_access("one"))
    assert records.find_access().cluster == "one"


def test_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_access(records.claim(make_record(name)).access("client"), make_access(name))
    monkeypatch.setenv("HPCVIEWS_CLUSTER", "two")
    assert records.find_access().cluster == "two"
    assert records.find_access("one").cluster == "one", "an argument is nearer than the environment"


def test_several_clusters_must_be_told_apart() -> None:
    for name in ("one", "two"):
        records.claim(make_record(name))
    with pytest.raises(NoCluster, match=r"name one of them: one \(on .*\), two"):
        records.find_access()


def test_dead_clusters_do_not_count_when_one_runs() -> None:
    claim_dead("dead")
    write_access(records.claim(make_record()).access("client"), make_access("one"))
    assert records.find_access().cluster == "one"


def test_no_cluster_says_how_to_start_one() -> None:
    with pytest.raises(NoCluster, match="hpcviews start --n 4"):
        records.find_access()


def test_unknown_name_lists_those_that_run() -> None:
    records.claim(make_record("one"))
    with pytest.raises(NoCluster, match="no cluster 'two' is running; running: one"):
        records.find_access("two")


def test_dead_cluster_is_reported_as_dead() -> None:
    claim_dead()
    with pytest.raises(NoCluster, match="hpcviews logs one"):
        records.find_access("one")


def test_starting_cluster_is_reported_as_starting() -> None:
    records.claim(make_record(generation=""))
    with pytest.raises(NoCluster, match="just starting"):
        records.find_access("one")


def test_connection_file_or_its_directory_can_be_given(tmp_path: Path) -> None:
    write_access(tmp_path / "client.json", make_access("one"))
    assert records.find_access(path=tmp_path).cluster == "one"
    assert records.find_access(path=tmp_path / "client.json").cluster == "one"


def test_damaged_record_is_no_cluster_and_does_not_hide_the_others(home: Path) -> None:
    place = records.claim(make_record("broken"))
    place.record.write_text("{")
    records.claim(make_record("one"))
    assert [found.record.name for found in records.list_clusters()] == ["one"]


def test_directory_without_a_record_is_left_alone_while_it_may_be_a_claim(home: Path) -> None:
    records.open_home()
    half = home / "clusters" / "half"
    half.mkdir(parents=True)
    assert records.list_clusters() == []
    assert half.exists()
    past = time.time() - 2 * records.CLAIM_S
    os.utime(half, (past, past))
    assert records.list_clusters() == []
    assert not half.exists()


def test_record_never_shows_a_secret() -> None:
    place = records.claim(make_record())
    write_access(place.access("client"), make_access("one"))
    assert b"secret" not in place.record.read_bytes()
