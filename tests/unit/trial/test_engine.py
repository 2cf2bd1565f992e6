"""A trial with the fake runc: what it is given, which steps are done, and that nothing is left."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import images
from fakes.snapshots import CONFIG, tar_of, write
from fakes.work import make_work, runc_calls

from shim.errors import GpuFailed, RestoreFailed, ThawError, Unfit
from shim.mount import mount_points
from shim.restore import stages
from shim.restore.device import Device
from shim.restore.plan import Plan
from shim.runc import Runc
from shim.snapshot import privileges
from shim.snapshot.host import this_host
from shim.snapshot.images import FILES
from shim.snapshot.origin import origin_of
from shim.snapshot.snapshot import Snapshot, open_at
from shim.trial import REQUEST, engine, folder_of
from shim.trial.engine import NotTried, Trial, remove
from shim.work import Work

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
SPEC: dict[str, Any] = {
    "process": {"args": ["sleep", "1000"]},
    "linux": {
        "cgroupsPath": "/thaw-test-no-such-group",
        "namespaces": [
            *({"type": kind} for kind in ("pid", "mount", "ipc", "uts")),
            {"type": "network", "path": "/proc/self/ns/net"},
        ],
    },
}


class Seen:
    """What there was when runc was asked for a restore."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.volume: list[str] = []
        self.act: Callable[[Work | None], None] = lambda _: None


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    volumes = tmp_path / "shm", tmp_path / "data"
    for folder in volumes:
        folder.mkdir()
        (folder / "theirs").write_text("theirs")
    mounts = [
        {"destination": place, "source": str(source), "options": ["rbind", "rw"]}
        for place, source in zip(("/dev/shm", "/data"), volumes, strict=True)
    ]
    made = make_work(
        tmp_path, {**SPEC, "mounts": mounts}, verb="checkpoint", pid=os.getpid(), name="one"
    )
    yield made
    assert mount_points(str(tmp_path)) == []


@pytest.fixture
def snapshot(work: Work, tmp_path: Path) -> Snapshot:
    origin = origin_of(work.bundle.spec(), "", "")
    config = replace(CONFIG, origin=origin, host=this_host(), volumes=["/dev/shm"])
    contents = {
        "rootfs.tar.0000": tar_of({"changed": b"by the worker"}),
        "volumes/0.tar.0000": tar_of({"mapped": b"by the worker"}),
        "criu/files.img": images.image(FILES),
    }
    (tmp_path / "snapshots").mkdir(mode=0o700)
    return open_at(write(tmp_path / "snapshots" / ".draft-0", config, contents))


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The fake runtime restores nothing, so what is looked at then is left out."""
    found = Seen()

    def restore(_runc: Runc, bundle: str, pid_file: str, *_: object) -> None:
        found.spec = json.loads(Path(bundle, "config.json").read_text())
        changed = Path(bundle, "rootfs", "changed")
        found.files = {"changed": changed.read_text()}
        for mount in found.spec["mounts"]:
            source = Path(mount["source"])
            found.files[mount["destination"]] = " ".join(sorted(os.listdir(source)))
            (source / "written").touch()
        Path(pid_file).write_text(str(os.getpid()))
        found.act(None)

    monkeypatch.setattr(Runc, "restore", restore)
    monkeypatch.setattr(stages.Stages, "refuse_unseen", lambda _: None)
    monkeypatch.setattr(privileges, "check", lambda *_: None)
    return found


def left(work: Work, tmp_path: Path) -> list[str]:
    """What there is besides the original and the draft."""
    there = set(os.listdir(tmp_path / "snapshots")) - {".draft-0"}
    trial = folder_of(str(work.folder))
    volumes = [f"{v}/{n}" for v in ("shm", "data", "upper") for n in os.listdir(tmp_path / v)]
    mine = [name for name in volumes if not name.endswith("/theirs")]
    return [*there, *mine, *([trial] if os.path.lexists(trial) else [])]


def test_what_is_restored_and_where(
    work: Work, snapshot: Snapshot, seen: Seen, tmp_path: Path
) -> None:
    Trial(work, snapshot).run()
    assert seen.files == {"changed": "by the worker", "/dev/shm": "mapped", "/data": "theirs"}
    (network,) = (x for x in seen.spec["linux"]["namespaces"] if x["type"] == "network")
    assert network["path"].startswith(f"/proc/{os.getpid()}/fd/")
    assert ["delete", "--force", "c-verify"] in [call[-3:] for call in runc_calls(tmp_path)]
    assert left(work, tmp_path) == []


def test_why_it_fails(work: Work, snapshot: Snapshot, seen: Seen, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise RestoreFailed("the cause")

    seen.act = fail
    with pytest.raises(RestoreFailed, match="the cause"):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


def test_one_that_ends_at_once(work: Work, snapshot: Snapshot, seen: Seen, tmp_path: Path) -> None:
    bundle = Path(folder_of(str(work.folder))) / "bundle"

    def end(_: object) -> None:
        (bundle / "init.pid").write_text("4194304")

    seen.act = end
    with pytest.raises(RestoreFailed, match="has ended at once"):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


def test_damage_is_a_failure(work: Work, snapshot: Snapshot, tmp_path: Path) -> None:
    (snapshot.path / "rootfs.tar.0000").write_bytes(b"\0" * 10240)
    with pytest.raises(ThawError, match=r"rootfs\.tar\.0000"):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


def test_it_is_over_in_time(
    work: Work, snapshot: Snapshot, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()

    def hang(_: object) -> None:
        assert hangs.wait(60)
        raise RestoreFailed("killed")

    config = {**work.raw["config"], "restore.deadline": 0.2}
    late = Work.parse({**work.raw, "config": config})
    seen.act = hang
    monkeypatch.setattr(engine, "_kill", lambda _: hangs.set())
    with pytest.raises(RestoreFailed, match=r"not done within 0.2 s"):
        Trial(late, snapshot).run()
    assert left(work, tmp_path) == []


def test_its_original_ends(
    work: Work, snapshot: Snapshot, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()

    def hang(_: object) -> None:
        assert hangs.wait(60)
        raise RestoreFailed("killed")

    seen.act = hang
    late = Work.parse({**work.raw, "pid": 4194304})
    monkeypatch.setattr(engine, "_kill", lambda _: hangs.set())
    with pytest.raises(NotTried, match="its container ended meanwhile"):
        Trial(late, snapshot).run()
    assert left(work, tmp_path) == []


def test_gpus_without_room(
    work: Work, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(_device: Device, work: Work, *_: object) -> list[tuple[str, str]]:
        assert work.config.number("gpu.wait") == 0, "its original does not go away"
        raise Unfit("H100 has 1.0 GiB free, 8.0 GiB are needed")

    monkeypatch.setattr(Device, "judge", judge)
    with pytest.raises(NotTried, match=r"8.0 GiB are needed"):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


@pytest.mark.parametrize("taken", [True, False])
def test_gpu_memory_that_is_taken_meanwhile(
    work: Work, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def resume(_device: Device, _work: Work, _plan: Plan) -> None:
        raise GpuFailed(f"restore: CUDA_ERROR_{'OUT_OF_MEMORY' if taken else 'NOT_SUPPORTED'}")

    monkeypatch.setattr(Device, "resume", resume)
    with pytest.raises(NotTried if taken else GpuFailed):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


def test_too_little_memory(
    work: Work, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "available", lambda: 4095)
    with pytest.raises(NotTried, match="GiB of memory are needed"):
        Trial(work, snapshot).run()
    assert left(work, tmp_path) == []


def test_what_a_killed_engine_has_left_goes(work: Work, snapshot: Snapshot, tmp_path: Path) -> None:
    folder = Path(folder_of(str(work.folder)))
    scratch = tmp_path / "snapshots" / ".draft-verify-c"
    for path in (folder / "bundle" / "rootfs", folder / "criu-work", scratch / "upper"):
        path.mkdir(parents=True)
    (folder / REQUEST).touch()
    (folder / "bundle" / "config.json").write_text(json.dumps(work.bundle.spec()))
    assert remove(work) == {}
    assert left(work, tmp_path) == []
    assert ["delete", "--force", "c-verify"] in [call[-3:] for call in runc_calls(tmp_path)]
    assert remove(work) == {}, "and once more"
    assert work.folder.exists()
