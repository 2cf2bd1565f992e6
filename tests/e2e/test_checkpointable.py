"""What is made of a container's spec so that it can be snapshotted, and GPUs that come by CDI or by
NVIDIA's runtime. There need be none here: nodes with their numbers can be made anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE, HOST_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod, linux_config
from cdi import described, hook, node, program
from serving import annotated
from stored import exists
from workers import COMMAND, USR, ask, checkpoint, executed, outcome, script, token_of

pytestmark = [pytest.mark.one_lane]

# io_uring_setup(1, NULL), and keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0), which
# containerd's own profile denies: x86-64's numbers.
CALLS = ((425, 1, None), (250, 0, -3, 0))
SAY = f"""
import ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)
def say(*_):
    print("said", [ctypes.get_errno() if libc.syscall(*call) < 0 else 0 for call in {CALLS}])
signal.signal(signal.SIGUSR1, say)
say()
while True:
    signal.pause()
"""
ASKS = annotated(ready="file:/tmp/warm")  # an annotation that changes nothing else
DEFAULT = linux_config(api.SecurityProfile.RuntimeDefault)


def asking(pod: Pod, name: str, linux: api.LinuxContainerConfig) -> Container:
    return pod.container(name, HOST_IMAGE, script(SAY), mounts=[USR], linux=linux).start()


def said(container: Container) -> list[int]:
    """The errors of both calls in it, 0 for none."""
    words = container.wait_for_log("]").partition("said ")[2]
    return [int(number) for number in json.loads(words)]


def own_answers() -> list[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    return [ctypes.get_errno() if libc.syscall(*call) < 0 else 0 for call in CALLS]


def test_io_uring(lane: Lane) -> None:
    """It is as on a kernel without; the rest is what the pod has said, or nobody's affair."""
    uring, keys = own_answers()
    with lane.pod("plain") as pod:
        assert said(asking(pod, "unconfined", linux_config())) == [uring, keys]
    with lane.pod("old", annotations=ASKS) as pod:
        assert said(asking(pod, "unconfined", linux_config())) == [errno.ENOSYS, keys]
        worker = asking(pod, "default", DEFAULT)
        assert said(worker) == [errno.ENOSYS, errno.EPERM]
        checkpoint(lane, worker, "filtered")
    with lane.pod("new", annotations=annotated(snapshot="filtered")) as pod:
        worker = asking(pod, "default", DEFAULT)
        assert outcome(lane, worker).message == "restored"
        worker.exec(["kill", "-USR1", "1"])
        assert said(worker) == [errno.ENOSYS, errno.EPERM]


def environment(container: Container) -> dict[str, str]:
    said = container.exec(["cat", "/proc/1/environ"]).stdout
    return dict(entry.partition("=")[::2] for entry in said.split("\0") if "=" in entry)


def test_the_environment(lane: Lane, tmp_path: Path) -> None:
    own = {"NCCL_P2P_DISABLE": "0"}
    sleep = ["sleep", "1000"]
    with lane.pod("asking", annotations=ASKS) as pod:
        container = pod.container("app", BUSYBOX_IMAGE, sleep, env=own).start()
        found = environment(executed(container, "sleep"))
        assert "SNAPSHOT_CONTROL_DIR" in found
        assert {name for name in found if "NCCL" in name} == own.keys(), "it has no GPU"
    with described("node", deviceNodes=[node(tmp_path)]) as gpu, lane.pod("plain") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, sleep, env=own, annotations=gpu.annotations)
        found = environment(executed(container.start(), "sleep"))
        assert container.exec(["stat", "-c", "%t %T", "/dev/nvidia0"]).stdout == "c3 0\n"
        assert "SNAPSHOT_CONTROL_DIR" not in found
        assert {name: value for name, value in found.items() if "NCCL" in name} == {
            "NCCL_CUMEM_ENABLE": "0",
            "NCCL_P2P_DISABLE": "0",
            "NCCL_NVLS_ENABLE": "0",
            "NCCL_IB_DISABLE": "1",
            "TORCH_NCCL_ENABLE_MONITORING": "0",
        }


# -- hooks ----------------------------------------------------------------------------------------

SCRATCH = "/run/nvidia-ctk-hook/9f0ad40e-2cd2-4b42-b2e4-0c1b0f7d9f7a"


class Hooks:
    """Hooks as NVIDIA's tools and others have them: each writes a line into a file as it runs."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        say = f"echo $(basename $0) $1 >> {self._log}"
        write = f'mkdir -p $root/etc "$root{SCRATCH}"; echo link >> $root/etc/by-hook'
        mount = f'[ "$1" != disable-device-node-modification ] || mount -t tmpfs x "$root{SCRATCH}"'
        cdi = program(folder / "nvidia-cdi-hook", say, write, mount)
        self.entries = [
            hook("createContainer", cdi, "update-ldcache"),
            hook("createContainer", cdi, "disable-device-node-modification"),
            hook("createRuntime", program(folder / "nvidia-container-runtime-hook", say)),
            hook("createRuntime", program(folder / "others", say)),
        ]

    def ran(self) -> list[str]:
        """Which have run since this was asked last, in order."""
        said = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return [line.strip() for line in said]


COLD = [
    *("nvidia-container-runtime-hook", "others"),
    *("nvidia-cdi-hook update-ldcache", "nvidia-cdi-hook disable-device-node-modification"),
]


def test_hooks(lane: Lane, tmp_path: Path) -> None:
    """What they do to the root comes back with it, and they must not do it once more."""
    hooks = Hooks(tmp_path)
    with described("hooks", hooks=hooks.entries) as device:
        notes = device.annotations
        with lane.pod("old") as pod:
            worker = pod.container("app", BUSYBOX_IMAGE, COMMAND, annotations=notes).start()
            token = token_of(worker)
            assert hooks.ran() == COLD
            assert made_by_hooks(worker) == "link\nlink\n"
            checkpoint(lane, worker, "hooks")
        asked = annotated(**{"snapshot.app": "hooks", "snapshot.other": "hooks"})
        with lane.pod("new", annotations=asked) as pod:
            worker = pod.container("app", BUSYBOX_IMAGE, COMMAND, annotations=notes).start()
            assert outcome(lane, worker).message == "restored"
            assert ask(worker).token == token
            assert hooks.ran() == ["others"], "a new container, whose namespaces are new ones"
            assert made_by_hooks(worker) == "link\nlink\n"
            other = [*COMMAND, "another"]
            worker = pod.container("other", BUSYBOX_IMAGE, other, annotations=notes).start()
            assert outcome(lane, worker).message == "booting cold"
            assert hooks.ran() == COLD
            assert made_by_hooks(worker) == "link\nlink\n"


def made_by_hooks(worker: Container) -> str:
    mounts = worker.exec(["cat", "/proc/mounts"]).stdout
    assert f" {SCRATCH} tmpfs " in mounts
    return worker.exec(["cat", "/etc/by-hook"]).stdout


def test_a_hook_that_mounts(lane: Lane, tmp_path: Path) -> None:
    """As libraries came before CDI: they work, and CRIU cannot dump them."""
    library = tmp_path / "libcuda.so.1"
    library.write_text("driver")
    mount = f"nsenter -t $pid -m sh -c 'touch {{1}}; mount --bind {library} {{1}}'"
    lines = ["to=$root/tmp/libcuda.so.1", mount.replace("{1}", "'$to'")]
    legacy = program(tmp_path / "nvidia-container-runtime-hook", *lines)
    entry = hook("createRuntime", legacy)
    with described("legacy", hooks=[entry]) as device, lane.pod("legacy") as pod:
        notes = device.annotations
        worker = pod.container("app", BUSYBOX_IMAGE, COMMAND, annotations=notes).start()
        token = token_of(worker)
        assert worker.exec(["cat", "/tmp/libcuda.so.1"]).stdout == "driver"
        with pytest.raises(RuntimeError, match=r"/tmp/libcuda\.so\.1 is mounted too.*by CDI"):
            checkpoint(lane, worker, "legacy")
        assert ask(worker).token == token
        assert not exists(lane, "legacy")


# -- NVIDIA's runtime -----------------------------------------------------------------------------

# As to when and where it is NVIDIA's: the spec is changed if any word is `create`.
RUNTIME = """\
#!/bin/sh
case " $* " in *" create "*) /usr/bin/python3 -IS {change} "$@";; esac
exec {runc} "$@"
"""
CHANGE = """\
import json, sys
words = sys.argv[1:]
folder = words[words.index("--bundle") + 1] if "--bundle" in words else "."
with open(f"{folder}/config.json") as file:
    spec = json.load(file)
if "NVIDIA_VISIBLE_DEVICES=0" in spec["process"]["env"]:
    change = json.loads(%r)
    spec["linux"].setdefault("devices", []).extend(change["devices"])
    spec["mounts"].extend(change["mounts"])
    stage = spec.setdefault("hooks", {}).setdefault("createContainer", [])
    stage.extend(change["hooks"])
    with open(f"{folder}/config.json", "w") as file:
        json.dump(spec, file)
"""


@contextmanager
def nvidias_runtime(lane: Lane, folder: Path, hooks: Sequence[Path]) -> Iterator[None]:
    """The lane's runtime for the block; it adds a node, a library and hooks."""
    library = folder / "libcuda.so.1"
    library.write_text("driver")
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    change = {
        "devices": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}],
        "mounts": [
            {"destination": "/usr/lib/libcuda.so.1", "source": str(library), "options": options}
        ],
        "hooks": [{"path": str(path), "args": [path.name, "update-ldcache"]} for path in hooks],
    }
    runc = str(lane.places.bin / "runc")
    runtime = folder / "nvidia-container-runtime"
    (folder / "change.py").write_text(CHANGE % json.dumps(change))
    runtime.write_text(RUNTIME.format(change=folder / "change.py", runc=runc))
    runtime.chmod(0o755)
    kept = lane.places.thaw_config.read_text()
    lane.places.thaw_config.write_text(kept.replace(f'"{runc}"', f'"{runtime}"'))
    try:
        yield
    finally:
        lane.places.thaw_config.write_text(kept)


def test_nvidias_runtime(lane: Lane, tmp_path: Path) -> None:
    """It changes the spec at `create`, which a restore has none of."""
    log = tmp_path / "log"
    write = program(
        tmp_path / "nvidia-cdi-hook", f"echo ran >> {log}", "echo link >> $root/tmp/by-hook"
    )

    def worker(pod: Pod, *more: str) -> Container:
        env = {"NVIDIA_VISIBLE_DEVICES": "0"}
        return pod.container("app", BUSYBOX_IMAGE, [*COMMAND, *more], env=env).start()

    with nvidias_runtime(lane, tmp_path, [write]):
        with lane.pod("old") as pod:
            first = worker(pod)
            token = token_of(first)
            has_all(first)
            checkpoint(lane, first, "nvidias")
        assert log.read_text() == "ran\n"
        with lane.pod("new", annotations=annotated(snapshot="nvidias", on_failure="fail")) as pod:
            second = worker(pod)
            assert outcome(lane, second).message == "restored"
            assert ask(second).token == token
            has_all(second)
        assert log.read_text() == "ran\n"
        with lane.pod("unfit", annotations=annotated(snapshot="nvidias")) as pod:
            third = worker(pod, "another")
            assert outcome(lane, third).message == "booting cold"
            token_of(third)  # its first process is runc's until it has booted
            has_all(third)
        assert log.read_text() == "ran\nran\n", "once, though its spec was changed before"


def has_all(worker: Container) -> None:
    assert worker.exec(["cat", "/usr/lib/libcuda.so.1", "/tmp/by-hook"]).stdout == "driverlink\n"
    assert worker.exec(["stat", "-c", "%t %T", "/dev/nvidia0"]).stdout == "c3 0\n"
    assert environment(worker)["NCCL_CUMEM_ENABLE"] == "0"
