"""A container gets its control directory: in its spec, and on the host."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.annotations import CANARY, GPU_MEMORY, ON_FAILURE, SNAPSHOT
from shim.config import Config
from shim.errors import BadAnnotation, FailedPrecondition, InvalidArgument
from shim.gpu import preload
from shim.mount import mount_points
from shim.removal import remove_folder
from shim.task.contract import agree, inject, prepare, withdraw
from shim.worker.control import PLACE

SPEC: dict[str, Any] = {
    "process": {"env": ["PATH=/bin"], "user": {"uid": 4711, "gid": 4712}},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
}


@pytest.fixture
def spec() -> dict[str, Any]:
    return copy.deepcopy(SPEC)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state"
    yield path
    remove_folder(str(path))


def test_the_spec(spec: dict[str, Any]) -> None:
    inject(spec, "/run/thaw/control")
    assert spec["mounts"][1:] == [
        {
            "destination": PLACE,
            "type": "bind",
            "source": "/run/thaw/control",
            "options": ["rbind", "rw", "nosuid", "nodev", "noexec"],
        }
    ]
    assert spec["process"]["env"] == [
        "PATH=/bin",
        f"SNAPSHOT_CONTROL_DIR={PLACE}",
        f"DYN_SNAPSHOT_CONTROL_DIR={PLACE}",
    ]
    once = copy.deepcopy(spec)
    inject(spec, "/elsewhere")
    assert spec == once, "done twice, it is as if done once"


def test_an_empty_spec() -> None:
    spec: dict[str, Any] = {"mounts": None}
    inject(spec, "/c")
    assert len(spec["mounts"]) == 1
    assert len(spec["process"]["env"]) == 2


def test_the_directory(spec: dict[str, Any], folder: Path) -> None:
    made = prepare(spec, str(folder))
    assert made is not None
    assert made.path == spec["mounts"][-1]["source"] == str(folder / "control")
    assert os.listdir(made.path) == ["wake"]
    assert os.stat(made.path).st_mode & 0o7777 == 0o777
    remove_folder(str(folder))
    assert not folder.exists()
    assert mount_points(str(folder)) == []


def test_a_container_cannot_fill_the_hosts_memory(spec: dict[str, Any], folder: Path) -> None:
    made = prepare(spec, str(folder))
    assert made is not None
    with pytest.raises(OSError, match="No space left"):
        Path(made.path, "big").write_bytes(bytes(2 << 20))
    with pytest.raises(OSError, match="No space left"):
        _fill(Path(made.path))


def _fill(folder: Path) -> None:
    for number in range(100):
        (folder / str(number)).touch()


def test_a_volume_of_the_pods_own(spec: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    (volume / "restore-complete").touch()
    own = {"destination": f"{PLACE}/", "type": "bind", "source": str(volume), "options": ["rbind"]}
    spec["mounts"].append(own)
    made = prepare(spec, str(folder))
    assert made is not None
    assert made.path == str(volume)
    assert os.listdir(volume) == ["wake"], "what an earlier container has left is gone"
    assert spec["mounts"] == [*SPEC["mounts"], own]
    assert not folder.exists()
    assert not withdraw(spec, str(folder))


def test_a_place_of_the_pods_own(spec: dict[str, Any], folder: Path) -> None:
    spec["process"]["env"].append("DYN_SNAPSHOT_CONTROL_DIR=/control")
    assert prepare(spec, str(folder)) is not None
    assert spec["mounts"][-1]["destination"] == "/control"
    assert spec["process"]["env"][1:] == [
        "SNAPSHOT_CONTROL_DIR=/control",
        "DYN_SNAPSHOT_CONTROL_DIR=/control",
    ]
    spec["process"]["env"] = ["SNAPSHOT_CONTROL_DIR=control"]
    with pytest.raises(InvalidArgument, match="SNAPSHOT_CONTROL_DIR"):
        prepare(spec, str(folder))


def test_a_mount_in_the_way(spec: dict[str, Any], folder: Path) -> None:
    spec["mounts"].append({"destination": PLACE, "type": "tmpfs", "source": "tmpfs"})
    before = copy.deepcopy(spec["mounts"])
    assert prepare(spec, str(folder)) is None
    assert spec["mounts"] == before


def test_taking_it_out_again(spec: dict[str, Any], folder: Path) -> None:
    inject(spec, str(folder / "control"))
    assert withdraw(spec, str(folder))
    assert spec["mounts"] == SPEC["mounts"]
    assert not withdraw(spec, str(folder))


OTHER = {"io.kubernetes.cri.container-name": "main"}


NVIDIAS = "/usr/bin/nvidia-container-runtime"
NODE = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}


def agreed(
    spec: dict[str, Any],
    folder: Path,
    runtime: str = "runc",
    memory: str = "library",
    **notes: str,
) -> dict[str, str]:
    spec["annotations"] = {**OTHER, **notes}
    folder.mkdir(exist_ok=True)
    settings = {
        "audit.log": str(folder / "audit.log"),
        "BinaryName": runtime,
        "gpu.preloaded": str(folder / "libraries"),
        "gpu.memory": memory,
    }
    return agree("c", spec, str(folder), Config(settings))


def without_io_uring(spec: dict[str, Any]) -> bool:
    rules = ((spec.get("linux") or {}).get("seccomp") or {}).get("syscalls") or []
    return any("io_uring_setup" in rule["names"] for rule in rules)


def with_nccl(spec: dict[str, Any]) -> bool:
    return any(entry.startswith("NCCL_") for entry in spec["process"]["env"])


def test_nothing_is_asked(spec: dict[str, Any], folder: Path) -> None:
    assert agreed(spec, folder) == OTHER
    assert spec == {**SPEC, "annotations": OTHER}
    assert os.listdir(folder) == []


def test_all_is_agreed(spec: dict[str, Any], folder: Path, logged: Callable[[], str]) -> None:
    notes = {CANARY: "http:80/health", "thaw.dev/canari": "http:80/"}
    assert agreed(spec, folder, **notes) == {**OTHER, **notes}
    assert without_io_uring(spec)
    assert not with_nccl(spec)
    assert spec["mounts"][-1]["destination"] == PLACE
    assert 'unknown annotation" container=c key=thaw.dev/canari' in logged()


def test_one_that_cannot_be_read(
    spec: dict[str, Any], folder: Path, logged: Callable[[], str]
) -> None:
    """The pod boots as any other would: with half of what was asked, it would be a wrong one."""
    notes = {SNAPSHOT: "warm", CANARY: "ftp:80"}
    assert agreed(spec, folder, **notes) == OTHER
    assert spec == {**SPEC, "annotations": OTHER}
    (line,) = logged().splitlines()
    for word in ("booting cold", "reason=BadAnnotation", CANARY, "ftp:80", "http:PORT/PATH"):
        assert word in line
    assert "warm" in (folder / "audit.log").read_text()
    with pytest.raises(BadAnnotation, match="ftp:80"):
        agreed(spec, folder, **notes, **{ON_FAILURE: "fail"})


def test_no_control_directory(
    spec: dict[str, Any], folder: Path, tmp_path: Path, logged: Callable[[], str]
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    own = {"destination": PLACE, "type": "bind", "source": str(volume), "options": ["rbind"]}
    spec["mounts"].append(own)
    assert agreed(spec, folder, **{SNAPSHOT: "warm"}) == OTHER
    assert "reason=FailedPrecondition" in logged()
    assert "not writable" in logged()
    own["source"] = str(tmp_path / "nowhere")
    with pytest.raises(FailedPrecondition, match="No such file"):
        agreed(spec, folder, **{SNAPSHOT: "warm", ON_FAILURE: "fail"})


def test_gpus_make_a_container_checkpointable(spec: dict[str, Any], folder: Path) -> None:
    """`thaw checkpoint` may mean any of them; no annotation, so no control directory."""
    spec["linux"] = {"devices": [NODE]}
    assert agreed(spec, folder) == OTHER
    assert spec["mounts"] == SPEC["mounts"]
    assert spec["linux"]["devices"] == [NODE]
    assert without_io_uring(spec)
    assert with_nccl(spec)
    once = copy.deepcopy(spec)
    agreed(spec, folder)
    assert spec == once


@pytest.mark.parametrize(("runtime", "gpus"), [("runc", False), (NVIDIAS, True)])
def test_gpus_that_the_runtime_gives(
    spec: dict[str, Any], folder: Path, runtime: str, gpus: bool
) -> None:
    """The environment of an image is NVIDIA's runtime's to read, and nobody else's."""
    spec["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")
    agreed(spec, folder, runtime)
    assert (without_io_uring(spec), with_nccl(spec)) == (gpus, gpus)


def test_gpus_and_an_annotation_that_cannot_be_read(spec: dict[str, Any], folder: Path) -> None:
    """That it asks for nothing that counts makes it a container with GPUs like any other."""
    spec["linux"] = {"devices": [NODE]}
    assert agreed(spec, folder, **{SNAPSHOT: "warm", CANARY: "ftp:80"}) == OTHER
    assert spec["mounts"] == SPEC["mounts"]
    assert with_nccl(spec)


def test_a_sandbox(spec: dict[str, Any], folder: Path) -> None:
    sandbox = {"io.kubernetes.cri.container-type": "sandbox"}
    spec["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")
    before = copy.deepcopy(spec)
    notes = agreed(spec, folder, NVIDIAS, **sandbox, **{SNAPSHOT: "warm"})
    assert spec == {**before, "annotations": notes}


# The GPU memory library


DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of this installation."""
    path = tmp_path / "libthaw-gpu.so"
    path.write_bytes(b"one")
    monkeypatch.setattr(preload, "installed", lambda: str(path))
    return path


def on_gpu(spec: dict[str, Any]) -> dict[str, Any]:
    spec["linux"] = {"devices": [NODE]}
    spec["mounts"] = [*spec["mounts"], DEV]
    return spec


def preloaded(spec: dict[str, Any]) -> list[str]:
    return [entry for entry in spec["process"]["env"] if entry.startswith("LD_PRELOAD=")]


def test_a_container_with_gpus_gets_the_library(
    spec: dict[str, Any], folder: Path, library: Path
) -> None:
    spec["process"]["env"].append("LD_PRELOAD=/lib/jemalloc.so")
    agreed(on_gpu(spec), folder)
    mount = spec["mounts"][-1]
    assert mount["destination"] == preload.PLACE
    assert "ro" in mount["options"]
    assert Path(mount["source"]).read_bytes() == b"one"
    assert Path(mount["source"]).parent == folder / "libraries"
    assert preloaded(spec) == [f"LD_PRELOAD={preload.PLACE}:/lib/jemalloc.so"]
    once = copy.deepcopy(spec)
    agreed(spec, folder)
    assert spec == once


def test_without_gpus_there_is_none(spec: dict[str, Any], folder: Path, library: Path) -> None:
    spec["mounts"] = [*spec["mounts"], DEV]
    agreed(spec, folder, **{CANARY: "http:80/"})
    assert preload.digest_of(spec) == ""
    assert preloaded(spec) == []
    assert not (folder / "libraries").exists()


@pytest.mark.parametrize(
    ("memory", "notes"),
    [
        ("driver", {}),
        ("driver", {GPU_MEMORY: "library"}),
        ("library", {GPU_MEMORY: "driver"}),
        ("library", {f"{GPU_MEMORY}.main": "driver", GPU_MEMORY: "library"}),
        # Of what is said beside it none counts, this does.
        ("library", {GPU_MEMORY: "driver", CANARY: "ftp:80"}),
        ("library", {GPU_MEMORY: "drivers"}),
    ],
)
def test_who_goes_without(
    spec: dict[str, Any], folder: Path, library: Path, memory: str, notes: dict[str, str]
) -> None:
    agreed(on_gpu(spec), folder, "runc", memory, **notes)
    assert (preload.digest_of(spec), preloaded(spec)) == ("", [])
    assert with_nccl(spec), "it can be snapshotted all the same"


@pytest.mark.parametrize(
    ("notes", "given"),
    [
        ({}, False),
        ({GPU_MEMORY: "library"}, True),
        ({f"{GPU_MEMORY}.main": "library"}, True),
        ({f"{GPU_MEMORY}.other": "library"}, False),
        ({GPU_MEMORY: "driver"}, False),
    ],
)
def test_several_gpus(
    spec: dict[str, Any],
    folder: Path,
    library: Path,
    logged: Callable[[], str],
    notes: dict[str, str],
    given: bool,
) -> None:
    """Programs may share memory between them by CUDA's IPC: with the library they must not."""
    on_gpu(spec)["linux"]["devices"].append({**NODE, "path": "/dev/nvidia1", "minor": 1})
    agreed(spec, folder, **notes)
    assert (preload.digest_of(spec) != "", preloaded(spec) != []) == (given, given)
    assert ("several GPUs" in logged()) == (not given and notes.get(GPU_MEMORY) != "driver")


def test_one_that_was_there_is_taken_away(
    spec: dict[str, Any], folder: Path, library: Path
) -> None:
    agreed(on_gpu(spec), folder)
    agreed(spec, folder, **{GPU_MEMORY: "driver"})
    assert (preload.digest_of(spec), preloaded(spec)) == ("", [])


def test_it_cannot_be_had(
    spec: dict[str, Any], folder: Path, library: Path, logged: Callable[[], str]
) -> None:
    """The container boots without: slower snapshots are better than none."""
    library.unlink()
    agreed(on_gpu(spec), folder)
    assert preload.digest_of(spec) == ""
    assert with_nccl(spec)
    line = logged()
    assert "no GPU memory library" in line
    assert str(library) in line


def test_the_machines_dev(
    spec: dict[str, Any], folder: Path, library: Path, logged: Callable[[], str]
) -> None:
    """A place to mount on would be made on the node."""
    on_gpu(spec)["mounts"].append({"destination": "/dev", "type": "bind", "source": "/dev"})
    agreed(spec, folder)
    assert preload.digest_of(spec) == ""
    assert "no /dev of its own" in logged()
