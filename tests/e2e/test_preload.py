"""The GPU memory library in containers: who has it, where, and which version after an upgrade.

What it does is no matter here; it must be there and do no harm. The installation is a copy, so that
it can be upgraded: a byte more at the end of the library, which no loader looks at.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from bed.cri import api_pb2 as api
from bed.environment import copied
from bed.fetch import criu
from bed.images import BUSYBOX_IMAGE, HOST_IMAGE
from bed.lane import Installation
from bed.pod import Container, Pod, linux_config
from gate import configured
from gpus import ATTEMPTS, GpuLane, device, removed, running
from stored import path_of
from workers import (
    FAIL,
    SNAPSHOT,
    USR,
    ask,
    checkpoint,
    executed,
    init_pid,
    outcome,
    script,
    token_of,
)

from shim.gpu.preload import CARRIED, PLACE, digest_of

pytestmark = [pytest.mark.one_lane]

NAME = "preloaded"
DRIVER = {"thaw.dev/gpu-memory": "driver"}
OTHERS = "libm.so.6"  # which a pod has preloaded itself
WORKER = script("""
import signal, uuid
token, asked = uuid.uuid4(), 0
def say(*_):
    global asked
    asked += 1
    print("token", token, "asked", asked)
signal.signal(signal.SIGUSR1, say)
print("booted", token)
while True:
    signal.pause()
""")


class Upgradable:
    """A copy of an installation."""

    def __init__(self, original: Installation, folder: Path) -> None:
        environment = original.bin.parent
        copy = folder / "installed"
        copied(environment, copy)
        [site] = copy.glob("lib/python3*/site-packages")
        self._library = site / "shim" / "libexec" / "libthaw-gpu.so"
        self.installation = Installation(copy / "bin")

    def upgrade(self) -> None:
        """Replace the library: running containers have the old file."""
        new = self._library.with_suffix(".new")
        new.write_bytes(self._library.read_bytes() + b"\0")
        new.replace(self._library)


@pytest.fixture(scope="module")
def product(
    installation: Installation | None, tmp_path_factory: pytest.TempPathFactory
) -> Upgradable:
    if installation is None:
        pytest.skip("needs the product to be installed")
    return Upgradable(installation, tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def lane(product: Upgradable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLane]:
    with running(GpuLane(product.installation, tmp_path_factory.mktemp("gpu"))) as made:
        yield made


@pytest.fixture(scope="module")
def home(lane: GpuLane) -> Iterator[Pod]:
    """A pod that asks for nothing."""
    with lane.pod("home") as pod:
        yield pod


def gpu(lane: GpuLane, number: int = 0) -> api.Device:
    """One of several."""
    node = lane.node.with_name(f"nvidia{number}")
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(195, number))
    return device(node)


def made(
    lane: GpuLane,
    pod: Pod,
    *,
    read_only: bool = False,
    env: Mapping[str, str] | None = None,
    gpus: int = 1,
) -> Container:
    """A container with GPUs and that worker, not started yet."""
    linux = linux_config()
    linux.security_context.readonly_rootfs = read_only
    return pod.container(
        "app",
        HOST_IMAGE,
        WORKER,
        mounts=[USR],
        env=env,
        linux=linux,
        devices=[gpu(lane, number) for number in range(gpus)],
        attempt=next(ATTEMPTS),
    )


def file_of(lane: GpuLane, container: Container) -> Path:
    """The library as the container's first process sees it."""
    return Path(f"/proc/{init_pid(lane, container.id)}/root{PLACE}")


def preloaded(lane: GpuLane, container: Container) -> str | None:
    """What LD_PRELOAD says to its first process."""
    text = Path(f"/proc/{init_pid(lane, container.id)}/environ").read_text()
    found = dict(entry.partition("=")[::2] for entry in text.split("\0"))
    return found.get("LD_PRELOAD")


def is_mapped(lane: GpuLane, container: Container) -> bool:
    maps = Path(f"/proc/{init_pid(lane, container.id)}/maps").read_text()
    return f" {PLACE}\n" in maps


def version_of(lane: GpuLane, container: Container) -> str:
    """The file in the node's folder that the container has; empty: none."""
    path = file_of(lane, container)
    if not path.exists():
        return ""
    [same] = [p for p in lane.places.libraries.iterdir() if p.read_bytes() == path.read_bytes()]
    mount = {"destination": PLACE, "source": str(same)}
    assert digest_of({"mounts": [mount]}), "its name says what is in it"
    return same.name


def test_it_is_loaded_first(lane: GpuLane, home: Pod) -> None:
    with removed(made(lane, home, env={"LD_PRELOAD": OTHERS}).start()) as container:
        token_of(container)
        assert preloaded(lane, container) == f"{PLACE}:{OTHERS}"
        assert is_mapped(lane, container)
        assert version_of(lane, container)
        wrote = container.exec(["/usr/bin/touch", PLACE])
        assert "Read-only file system" in wrote.stderr
        assert container.exec(["/usr/bin/env"]).stderr == "", "the others have nothing to say"


def test_a_read_only_root(lane: GpuLane, home: Pod) -> None:
    """It is snapshotted, tried and restored as any other."""
    with configured(lane, criu(), f'{lane.more}checkpoint.verify = "restore"\n'):
        worker = made(lane, home, read_only=True).start()
    with removed(worker) as container:
        token = token_of(container)
        assert container.exec(["/usr/bin/touch", "/x"]).exit_code
        assert is_mapped(lane, container)
        checkpoint(lane, container, "read-only")
        document = json.loads((path_of(lane, "read-only") / "config.json").read_text())
        assert document["verified"] == "restored"
    with lane.pod("read-only", annotations={SNAPSHOT: "read-only", **FAIL}) as pod:
        container = made(lane, pod, read_only=True).start()
        assert outcome(lane, container).message == "restored"
        assert is_mapped(lane, container)
        assert ask(container).token == token


def test_who_has_none(lane: GpuLane, home: Pod) -> None:
    sleep = ["sleep", "1000"]
    with removed(home.container("none", BUSYBOX_IMAGE, sleep).start()) as container:
        executed(container, "sleep")
        assert not file_of(lane, container).exists(), "it has no GPU"
        assert preloaded(lane, container) is None
    with lane.pod("driver", annotations=DRIVER) as pod:
        container = made(lane, pod, env={"LD_PRELOAD": OTHERS}).start()
        token_of(container)
        assert not file_of(lane, container).exists()
        assert preloaded(lane, container) == OTHERS


def test_several_gpus(lane: GpuLane, home: Pod) -> None:
    """Only who asks for it: programs that share memory between GPUs could not with it."""
    with removed(made(lane, home, gpus=2).start()) as container:
        token_of(container)
        assert preloaded(lane, container) is None
        assert not file_of(lane, container).exists()
    with lane.pod("several", annotations={"thaw.dev/gpu-memory": "library"}) as pod:
        container = made(lane, pod, gpus=2).start()
        token_of(container)
        assert preloaded(lane, container) == PLACE
        assert is_mapped(lane, container)


def test_a_static_program(lane: GpuLane, home: Pod) -> None:
    """Such a program ignores it, and runs as ever."""
    static = home.container("busybox", BUSYBOX_IMAGE, ["sleep", "1000"], devices=[gpu(lane)])
    with removed(static.start()) as container:
        executed(container, "sleep")
        assert preloaded(lane, container) == PLACE
        assert not is_mapped(lane, container)
        assert container.exec(["cat", "/proc/1/comm"]).stdout == "sleep\n"


def test_versions(lane: GpuLane, product: Upgradable, home: Pod) -> None:
    """A snapshot has the one that it was made with, however new Thaw is; or it does not fit."""
    with removed(made(lane, home).start()) as container:
        token = token_of(container)
        old = version_of(lane, container)
        checkpoint(lane, container, NAME)
        product.upgrade()
        assert is_mapped(lane, container)
        assert version_of(lane, container) == old
    with lane.pod("upgraded", annotations={SNAPSHOT: NAME}) as pod:
        with removed(made(lane, pod).start()) as container:
            assert outcome(lane, container).message == "restored"
            assert version_of(lane, container) == old
            assert is_mapped(lane, container)
            assert ask(container).token == token
        kept = lane.places.libraries / old
        away = lane.places.folder / "away.so"
        kept.rename(away)
        with removed(made(lane, pod).start()) as container:
            assert outcome(lane, container).message == "restored", "it has brought its own along"
            assert version_of(lane, container) == old
        assert away.read_bytes() == kept.read_bytes()
        kept.unlink()
        carried = path_of(lane, NAME) / "criu" / CARRIED
        carried.write_bytes(b"another")
        with removed(made(lane, pod).start()) as container:
            line = outcome(lane, container)
            assert (line.message, line.fields["reason"]) == ("booting cold", "Unfit")
            assert "is not the GPU memory library" in line.fields["error"]
            assert token_of(container) != token
            assert version_of(lane, container) not in ("", old)
            assert is_mapped(lane, container)


def test_one_side_only(lane: GpuLane, home: Pod) -> None:
    """Whether the library is there is no difference between a snapshot and a pod."""
    notes = {SNAPSHOT: "with", **FAIL, **DRIVER}
    with removed(made(lane, home).start()) as container:
        token = token_of(container)
        checkpoint(lane, container, "with")
    with lane.pod("without", annotations=notes) as pod:
        container = made(lane, pod).start()
        assert outcome(lane, container).message == "restored"
        assert is_mapped(lane, container)
        assert ask(container).token == token
    with lane.pod("without-maker", annotations=DRIVER) as pod:
        container = made(lane, pod).start()
        token = token_of(container)
        checkpoint(lane, container, "without")
    with lane.pod("with", annotations={SNAPSHOT: "without", **FAIL}) as pod:
        container = made(lane, pod).start()
        assert outcome(lane, container).message == "restored"
        assert not file_of(lane, container).exists()
        assert ask(container).token == token
