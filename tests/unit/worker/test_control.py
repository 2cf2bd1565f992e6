"""The control directory, with a container that need not be honest."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.settled import PATIENCE

from shim.errors import FailedPrecondition, InvalidArgument
from shim.worker import control
from shim.worker.control import PLACE, Control, User, find, place_of, user_of

WORKER = User(4711, 4712, (4713,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A volume such as an emptyDir."""
    path = tmp_path / "volume"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def there(folder: Path) -> Control:
    made = Control(str(folder), WORKER)
    made.clear()
    return made


def spec_with(source: str, *options: str, **more: Any) -> dict[str, Any]:
    mount = {"destination": PLACE, "type": "bind", "source": source, "options": list(options)}
    return {"mounts": [mount], **more}


def test_what_an_earlier_container_left_is_gone(folder: Path) -> None:
    for name in (control.READY, control.RESTORED, control.IDENTITY, "own"):
        (folder / name).touch()
    (folder / control.SAVED).mkdir()
    (folder / control.WAKE).symlink_to("/etc/passwd")
    Control(str(folder), WORKER).clear()
    assert sorted(os.listdir(folder)) == ["own", control.WAKE]
    info = os.lstat(folder / control.WAKE)
    assert stat.S_ISFIFO(info.st_mode)
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (4711, 4712, 0o666)
    assert os.stat("/etc/passwd").st_uid == 0


def test_a_worker_says_that_it_is_ready(folder: Path, there: Control) -> None:
    assert not there.ready()
    (folder / control.READY).touch()
    assert there.ready()


def test_a_link_or_a_folder_says_nothing(folder: Path, there: Control) -> None:
    (folder / control.READY).symlink_to("/etc/passwd")
    assert not there.ready()
    (folder / control.READY).unlink()
    (folder / control.READY).mkdir()
    assert not there.ready()


def test_an_event(folder: Path, there: Control) -> None:
    there.write(control.IDENTITY, b"{}")
    there.tell(control.RESTORED)
    assert (folder / control.IDENTITY).read_bytes() == b"{}"
    info = os.lstat(folder / control.RESTORED)
    assert (info.st_uid, info.st_gid, info.st_mode) == (4711, 4712, stat.S_IFREG | 0o644)
    assert len(os.listdir(folder)) == 3, "and nothing besides"


def test_links_are_replaced_not_followed(folder: Path, there: Control, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("the host's")
    (folder / control.RESTORED).symlink_to(hosts)
    there.write(control.RESTORED, b"x")
    assert hosts.read_text() == "the host's"
    assert not (folder / control.RESTORED).is_symlink()


def test_a_folder_is_in_the_way(folder: Path, there: Control) -> None:
    (folder / control.RESTORED / "x").mkdir(parents=True)
    with pytest.raises(OSError, match=control.RESTORED):
        there.tell(control.RESTORED)
    assert len(os.listdir(folder)) == 2, "nothing half-made stays"


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFREG])
def test_only_a_fifo_is_opened(folder: Path, there: Control, kind: int) -> None:
    """Opening a device can set it off."""
    (folder / control.WAKE).unlink()
    os.mknod(folder / control.WAKE, kind | 0o666, os.makedev(1, 7))  # /dev/full
    there.tell(control.RESTORED)
    assert (folder / control.RESTORED).exists()
    assert os.lstat(folder / control.WAKE).st_size == 0


def test_who_waits_is_woken(folder: Path, there: Control) -> None:
    reader = os.open(folder / control.WAKE, os.O_RDWR | os.O_NONBLOCK)
    there.tell(control.RESTORED)
    assert os.read(reader, 100) == b"restore-complete\n"
    os.close(reader)


def test_who_is_blocked_is_woken(folder: Path, there: Control) -> None:
    """In open, as who reads it line by line is."""

    def wait() -> None:
        with open(folder / control.WAKE) as file:
            file.readline()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    ends = time.monotonic() + PATIENCE
    while thread.is_alive():  # again, should it not have been blocked yet
        assert time.monotonic() < ends, "it was not woken"
        thread.join(0.05)
        there.tell(control.SAVED)
        thread.join(1)


def test_nobody_reads_and_nothing_waits(folder: Path, there: Control) -> None:
    reader = os.open(folder / control.WAKE, os.O_RDWR | os.O_NONBLOCK)
    os.set_blocking(reader, False)
    try:
        while select.select([], [reader], [], 0)[1]:
            os.write(reader, bytes(4096))
    except BlockingIOError:
        pass
    there.tell(control.RESTORED)
    os.close(reader)
    there.tell(control.RESTORED)
    assert (folder / control.RESTORED).exists()


@pytest.mark.parametrize(
    ("owner", "group", "mode", "good"),
    [
        (0, 0, 0o777, True),
        (0, 0, 0o755, False),
        (4711, 0, 0o700, True),
        (0, 4713, 0o2775, True),
        (0, 4713, 0o2757, False),
    ],
)
def test_only_where_the_user_may_write(
    tmp_path: Path, owner: int, group: int, mode: int, good: bool
) -> None:
    """A volume of the host's must not be written to for somebody who could not."""
    path = tmp_path / "volume"
    path.mkdir()
    os.chown(path, owner, group)
    path.chmod(mode)
    there = Control(str(path), WORKER)
    if good:
        there.write("x", b"")
        return
    for use in (there.clear, there.ready, lambda: there.tell("x")):
        with pytest.raises(FailedPrecondition, match="not writable"):
            use()
    assert os.listdir(path) == []


def test_what_is_no_directory(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    for name in ("file", "link"):
        with pytest.raises(FailedPrecondition, match="no directory"):
            Control(str(tmp_path / name), WORKER).clear()
    with pytest.raises(FileNotFoundError):
        Control(str(tmp_path / "absent"), WORKER).clear()


def test_users() -> None:
    user = user_of({"process": {"user": {"uid": 5, "gid": 6, "additionalGids": [7]}}})
    assert (user.uid, user.gid, user.groups) == (5, 6, (7,))
    maps = [{"containerID": 0, "hostID": 65536, "size": 10}]
    spec = {"process": {"user": {"uid": 5}}, "linux": {"uidMappings": maps}}
    assert (user_of(spec).uid, user_of(spec).gid, user_of({}).uid) == (65541, 0, 0)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ([], PLACE),
        (["SNAPSHOT_CONTROL_DIR="], PLACE),
        (["SNAPSHOT_CONTROL_DIR=/run/control"], "/run/control"),
        (["A=b", "DYN_SNAPSHOT_CONTROL_DIR=/c"], "/c"),
    ],
)
def test_the_place(env: list[str], place: str) -> None:
    assert place_of({"process": {"env": env}}) == place


@pytest.mark.parametrize("path", ["relative", "/", "/proc/1", "/a/../b", "/a/", "/etc", "//a"])
def test_what_is_no_place(path: str) -> None:
    with pytest.raises(InvalidArgument, match="SNAPSHOT_CONTROL_DIR"):
        place_of({"process": {"env": [f"SNAPSHOT_CONTROL_DIR={path}"]}})


def test_finding() -> None:
    assert find({}) is None
    assert find(spec_with("/a", "ro", "rbind")) is None
    tmpfs = {"destination": PLACE, "type": "tmpfs", "source": "tmpfs", "options": ["rw"]}
    assert find({"mounts": [tmpfs]}) is None
    found = find(spec_with("/a", "rbind", "rw"))
    assert found is not None
    assert found.path == "/a"
    env = {"process": {"env": ["SNAPSHOT_CONTROL_DIR=/b"]}}
    assert find(spec_with("/a", "bind", **env)) is None
