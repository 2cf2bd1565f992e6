"""What a trial has instead of its original's, made for real in threads of their own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from fakes.snapshots import CONFIG
from fakes.work import make_work

from shim.errors import Unfit
from shim.mount import mount_all, mount_points
from shim.namespaces import in_thread
from shim.proto.task_pb import Mount
from shim.restore.namespace import addresses
from shim.snapshot.config import MountPoint
from shim.trial.world import Given, give_root, give_volumes, own_mounts, own_network, streams

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
T = TypeVar("T")


def apart(function: Callable[[], T]) -> T:
    """What a function answers in a mount namespace that goes with it."""

    def run() -> T:
        own_mounts()
        return function()

    return in_thread(run)


def given(tmp_path: Path, source: Path, options: list[str], **changes: object) -> Given:
    spec = {"mounts": [{"destination": "/data", "source": str(source), "options": options}]}
    config = replace(CONFIG, volumes=[], **changes)  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir(exist_ok=True)
    return give_volumes(spec, config, str, tmp_path / "folder", tmp_path / "scratch")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "a, b: c"
    folder.mkdir(mode=0o750)
    os.chown(folder, 3, 4)
    (folder / "kept").write_text("kept")
    return folder


def test_mounts_are_its_threads_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()

    def mount() -> str:
        mount_all([Mount(type="tmpfs", source="thaw", options=[])], str(tmp_path / "here"))
        return Path("/proc/thread-self/mountinfo").read_text()

    assert str(tmp_path) in apart(mount)
    assert mount_points(str(tmp_path)) == []


def test_a_folder_is_copied_when_it_is_written_to(tmp_path: Path, volume: Path) -> None:
    def write() -> tuple[Given, os.stat_result, str]:
        found = given(tmp_path, volume, ["rbind", "rw"])
        place = Path(found.sources["/data"])
        text = (place / "kept").read_text()
        (place / "kept").write_text("changed")
        (place / "new").touch()
        return found, place.stat(), text

    found, info, text = apart(write)
    assert found.kinds == {"/data": "overlay"}
    assert text == "kept"
    assert (volume / "kept").read_text() == "kept"
    assert os.listdir(volume) == ["kept"]
    assert (info.st_mode & 0o777, info.st_uid, info.st_gid) == (0o750, 3, 4)


def test_what_is_saved_gets_an_empty_one(tmp_path: Path, volume: Path) -> None:
    points = [MountPoint("/data", "tmpfs", ["noexec", "nosuid", "rw"], "private")]
    spec = {"mounts": [{"destination": "/data", "source": str(volume), "options": ["bind"]}]}
    config = replace(CONFIG, volumes=["/data"], mounts=points)

    def look() -> tuple[Given, list[str], str]:
        found = give_volumes(spec, config, str, tmp_path, tmp_path / "scratch")
        place = found.sources["/data"]
        with open("/proc/thread-self/mountinfo") as table:
            (line,) = [line for line in table if f" {place} " in line]
        return found, os.listdir(place), line

    found, contents, line = apart(look)
    assert (found.kinds, contents) == ({"/data": "tmpfs"}, [])
    assert {"nosuid", "noexec"} <= set(line.split()[5].split(","))
    assert "mode=750" in line


def test_a_file_is_copied(tmp_path: Path, volume: Path) -> None:
    found = apart(lambda: given(tmp_path, volume / "kept", ["bind", "rw"]))
    copy = Path(found.sources["/data"])
    assert copy.read_text() == "kept"
    assert not copy.samefile(volume / "kept")
    assert found.kinds["/data"]


def test_what_is_read_only_is_shared(tmp_path: Path, volume: Path) -> None:
    assert apart(lambda: given(tmp_path, volume, ["rbind", "ro"])) == Given({}, {})


def test_devices_are_no_volumes(tmp_path: Path) -> None:
    assert apart(lambda: given(tmp_path, Path("/dev/null"), ["bind"])) == Given({}, {})


def test_what_cannot_be_copied_is_named(tmp_path: Path, volume: Path) -> None:
    with (volume / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(Unfit, match="the file at /data is too large"):
        apart(lambda: given(tmp_path, volume / "large", ["bind"]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(volume / "s"))
    with pytest.raises(Unfit, match="at /data is neither a file nor a folder"):
        apart(lambda: given(tmp_path, volume / "s", ["bind"]))
    with pytest.raises(Unfit, match="/data is a proc, of which there is no copy"):
        apart(lambda: given(tmp_path, Path("/proc/sys"), ["bind"]))


def test_a_folder_with_others_mounted_in_it(tmp_path: Path, volume: Path) -> None:
    (volume / "below").mkdir()

    def mounted(options: list[str]) -> Given:
        mount_all([Mount(type="tmpfs", source="thaw", options=[])], str(volume / "below"))
        return given(tmp_path, volume, options)

    with pytest.raises(Unfit, match="other file systems are mounted in /data"):
        apart(lambda: mounted(["rbind", "rw"]))
    assert apart(lambda: mounted(["bind", "rw"])).kinds == {"/data": "overlay"}


@pytest.mark.parametrize("contents", [False, True])
def test_the_root_is_on_the_same_layers(tmp_path: Path, contents: bool) -> None:
    work = make_work(tmp_path)
    (tmp_path / "upper" / "written").touch()
    (tmp_path / "upper").chmod(0o711)
    (root,) = give_root(work, tmp_path / "scratch", contents=contents)
    upper = tmp_path / "scratch" / "upper"
    assert root.options == [
        f"lowerdir={tmp_path}/lower",
        f"upperdir={upper}",
        f"workdir={tmp_path}/scratch/work",
    ]
    assert upper.stat().st_mode & 0o777 == 0o711
    assert os.listdir(upper) == (["written"] if contents else [])


def test_a_network_with_the_same_addresses_and_nobody_in_it() -> None:
    wanted = ["eth0 10.99.0.7", "eth0 fd00::7", "net1 10.98.0.2"]
    fd = in_thread(lambda: own_network(wanted))
    try:
        path = f"/proc/self/fd/{fd}"
        found = [line for line in addresses(path) if "fe80" not in line]
        assert sorted(found) == wanted
        assert os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino
        assert {"net1", "thaw0"}.isdisjoint(name for _, name in socket.if_nameindex())
    finally:
        os.close(fd)


def test_a_network_that_cannot_be_made() -> None:
    with pytest.raises(OSError, match="no network like the pod's can be made"):
        in_thread(lambda: own_network(["a-name-that-is-too-long 10.99.0.7"]))


def test_streams_are_read_by_nobody() -> None:
    with streams() as fds:
        assert sorted(fds) == [0, 1, 2]
        os.write(fds[1], b"output")
        assert os.get_inheritable(fds[0]) is False
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[0])
