"""Device nodes are exchanged in the root of another process, whatever stands in the way there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shim.errors import RestoreFailed
from shim.restore.devices import exchange
from shim.snapshot.config import DeviceNode
from shim.snapshot.nodes import Exchange

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")

OLD = DeviceNode("/dev/gpu1", "c", 1, 5, 0o666, 0, 0)
NEW = DeviceNode("/dev/gpu0", "c", 1, 7, 0o640, 7, 8)
BOTH = Exchange((OLD,), (NEW,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root, with the node that it had."""
    folder = tmp_path / "root"
    (folder / "dev").mkdir(parents=True)
    os.mknod(folder / "dev" / "gpu1", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return folder


@pytest.fixture
def init(root: Path) -> Iterator[int]:
    """A process whose root it is."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.chroot(root)
        os.write(tell, b"x")
        while True:
            signal.pause()
    assert os.read(told, 1) == b"x"
    os.close(told)
    os.close(tell)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def found(path: Path) -> tuple[str, int, int, int]:
    """What `path` is: as `ls` begins its line, the device's numbers in one, owner, group."""
    info = path.lstat()
    return stat.filemode(info.st_mode), info.st_rdev, info.st_uid, info.st_gid


IS_NEW = ("crw-r-----", os.makedev(1, 7), 7, 8)


def test_one_goes_and_another_comes(root: Path, init: int) -> None:
    for _ in range(2):
        exchange(BOTH, init)
        assert os.listdir(root / "dev") == ["gpu0"]
        assert found(root / "dev" / "gpu0") == IS_NEW


def test_a_node_that_is_right_is_left_alone(root: Path, init: int) -> None:
    exchange(BOTH, init)
    before = (root / "dev" / "gpu0").stat()
    exchange(BOTH, init)
    assert (root / "dev" / "gpu0").stat() == before


def test_a_folder_is_made(root: Path, init: int) -> None:
    caps = DeviceNode("/dev/nvidia-caps/nvidia-cap1", "c", 237, 1, 0o400, 0, 0)
    fifo = DeviceNode("/dev/deep/er/fifo", "p", 0, 0, 0o622, 0, 0)
    exchange(Exchange((), (caps, fifo)), init)
    made = found(root / "dev" / "nvidia-caps" / "nvidia-cap1")
    assert made == ("cr--------", os.makedev(237, 1), 0, 0)
    assert found(root / "dev" / "deep" / "er" / "fifo")[0] == "prw--w--w-"


def test_what_was_never_there_is_removed(root: Path, init: int) -> None:
    (root / "dev" / "gpu1").unlink()
    elsewhere = DeviceNode("/dev/none/at/all", "c", 1, 5, 0o666, 0, 0)
    exchange(Exchange((OLD, elsewhere)), init)
    assert os.listdir(root / "dev") == []


@pytest.mark.parametrize("what", ["file", "folder", "link", "other"])
def test_what_the_worker_has_put_there_stays(root: Path, init: int, what: str) -> None:
    place = root / "dev" / "gpu1"
    place.unlink()
    if what == "file":
        place.write_text("mine")
    elif what == "folder":
        place.mkdir()
    elif what == "link":
        os.mknod(root / "dev" / "target", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        place.symlink_to("target")
    else:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    before = found(place)
    exchange(BOTH, init)
    assert found(place) == before
    assert (root / "dev" / "target").exists() == (what == "link")


@pytest.mark.parametrize("what", ["file", "link", "rights", "numbers"])
def test_what_stands_in_the_way_of_a_new_one_is_replaced(
    root: Path, init: int, tmp_path: Path, what: str
) -> None:
    place, outside = root / "dev" / "gpu0", tmp_path / "outside"
    outside.write_text("the node's own")
    if what == "file":
        place.write_text("odd")
    elif what == "link":
        place.symlink_to(outside)
    else:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 7 if what == "rights" else 8))
    exchange(BOTH, init)
    assert found(place) == IS_NEW
    assert outside.read_text() == "the node's own"
    assert sorted(os.listdir(root / "dev")) == ["gpu0"]


def test_a_folder_in_the_way_is_an_error_with_a_name(root: Path, init: int) -> None:
    (root / "dev" / "gpu0").mkdir()
    with pytest.raises(RestoreFailed, match=r"cannot make the device node '/dev/gpu0': "):
        exchange(BOTH, init)
    assert os.listdir(root / "dev") == ["gpu0"], "nothing half made is left"


@pytest.mark.parametrize("link", ["absolute", "climbing"])
def test_links_lead_nowhere_but_inside(root: Path, init: int, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = str(outside) if link == "absolute" else "../../../../outside"
    (root / "dev" / "sub").symlink_to(target)
    inside = root / (str(outside) if link == "absolute" else "outside").lstrip("/")
    node = DeviceNode("/dev/sub/gpu0", "c", 1, 7, 0o640, 7, 8)
    exchange(Exchange((), (node,)), init)
    assert os.listdir(outside) == []
    assert found(inside / "gpu0") == IS_NEW
    exchange(Exchange((node,)), init)
    assert os.listdir(inside) == []


def test_a_mounted_node_stays(root: Path, tmp_path: Path) -> None:
    """The mount is in the container's namespace alone, where a rename from ours would undo it."""
    source = tmp_path / "source"
    source.write_text("mounted")
    (root / "dev" / "gpu0").touch()
    mount = f"mount --bind {source} {root}/dev/gpu0; mount --bind /dev/zero {root}/dev/gpu1"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-ec", f"{mount}; echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        nodes = [replace(node, path=f"{root}{node.path}") for node in (OLD, NEW)]
        exchange(Exchange((nodes[0],), (nodes[1],)), process.pid)
        seen = Path(f"/proc/{process.pid}/root{root}/dev")
        assert (seen / "gpu0").read_text() == "mounted"
        assert (seen / "gpu1").stat().st_rdev == os.makedev(1, 5)
        process.kill()


def test_numbers_that_no_device_has(root: Path, init: int) -> None:
    node = DeviceNode("/dev/odd", "c", 1 << 40, -1, 0o666, 0, 0)
    with pytest.raises(RestoreFailed, match="cannot make the device node '/dev/odd'"):
        exchange(Exchange((node,), (node,)), init)
    assert os.listdir(root / "dev") == ["gpu1"]
