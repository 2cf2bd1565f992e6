"""A plan is data: the same from the same, and nothing is touched to make one."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.snapshots import CONFIG
from fakes.work import make_work

from shim.errors import Unfit
from shim.restore import plan as planning
from shim.restore.addresses import Rewritten
from shim.restore.plan import Plan
from shim.snapshot.archive import Archive
from shim.snapshot.config import Connections, DeviceNode, SnapshotConfig
from shim.work import Work

FOLDER = Path("/snapshots/one")
SHM = {"destination": "/dev/shm/", "source": "/run/pod/shm", "type": "bind", "options": ["rbind"]}


def make(work: Work, config: SnapshotConfig, index: Path | None = FOLDER / "index") -> Plan:
    return planning.make(work, work.bundle.spec(), config, FOLDER, FOLDER / "criu", index)


def bare_config(**changes: Any) -> SnapshotConfig:
    return replace(CONFIG, **{"volumes": [], **changes})


def without_rootfs(folder: Path, kind: str) -> Work:
    rootfs = [{"type": kind, "source": "/x", "target": "", "options": ["rbind"]}]
    return make_work(folder, rootfs=rootfs if kind else [])


def test_everything(tmp_path: Path) -> None:
    work = make_work(tmp_path, {"mounts": [SHM], "hostname": "pod"})
    plan = make(work, replace(CONFIG, volumes=["/dev/shm"]))
    assert (plan.snapshot, plan.images) == (str(FOLDER), FOLDER / "criu")
    assert plan.difference == Archive(FOLDER / "rootfs.tar")
    assert (plan.upper, plan.scratch) == (tmp_path / "upper", tmp_path / "work")
    (volume,) = plan.volumes
    assert volume.saved == Archive(FOLDER / "volumes" / "0.tar")
    assert volume.source == "/run/pod/shm"
    assert volume.destination == "/dev/shm"
    assert plan.hostname == "pod"
    assert plan.mounts == tuple(CONFIG.mounts)
    options = plan.runc_options
    assert options[options.index("--image-path") + 1] == str(planning.linked_images(work))
    assert options[options.index("--work-path") + 1].startswith(str(work.folder))


def test_the_same_from_the_same_and_nothing_is_touched(tmp_path: Path) -> None:
    """Neither the snapshot nor the volume exists."""
    work = make_work(tmp_path, {"mounts": [SHM]})
    before = sorted(os.walk(tmp_path))
    first = make(work, replace(CONFIG, volumes=["/dev/shm"]))
    assert first == make(work, replace(CONFIG, volumes=["/dev/shm"]))
    assert sorted(os.walk(tmp_path)) == before
    with pytest.raises(FrozenInstanceError):
        first.images = Path("/")  # type: ignore[misc]


def image_path(plan: Plan) -> str:
    return plan.runc_options[plan.runc_options.index("--image-path") + 1]


@pytest.mark.parametrize("pages", [(), (Path("/a/pages"), Path("/b/pages"))])
def test_criu_gets_whole_pages_files(tmp_path: Path, pages: tuple[Path, ...]) -> None:
    """Where it restores all of the memory, and they are pieces."""
    work = make_work(tmp_path)
    spec = work.bundle.spec()
    plan = planning.make(work, spec, bare_config(), FOLDER, FOLDER / "criu", pages=pages)
    assert plan.assembled == tmp_path / "snapshots" / ".draft-criu-c"
    assert image_path(plan) == str(planning.linked_images(work))
    assert plan.pages == (pages or (FOLDER / "pages",))
    assert f"put the pages files together in {plan.assembled}" in plan.describe()
    filled = make(work, bare_config())
    assert (filled.assembled, filled.pages) == (None, ())
    whole = make(work, bare_config(pages={"pages-1.img": 4096}), index=None)
    assert (whole.assembled, image_path(whole)) == (None, str(planning.linked_images(work)))


def test_described(tmp_path: Path) -> None:
    work = make_work(tmp_path, {"mounts": [SHM], "hostname": "pod"})
    plan = make(work, replace(CONFIG, volumes=["/dev/shm"]))
    assert plan.describe() == [
        "restore the snapshot /snapshots/one",
        "read the memory ahead that /snapshots/one/index lists",
        "lay /snapshots/one/volumes/0.tar into /dev/shm (/run/pod/shm)",
        f"lay /snapshots/one/rootfs.tar into {tmp_path}/upper, then mount the root on it",
        f"runc restore {' '.join(plan.runc_options)}",
        *(f"  criu: {option}" for option in plan.criu_options),
        f"  check {len(CONFIG.mounts)} mounts, and that the pod's spec asks for each",
        "  memory: we fill it past CRIU",
        "set the host name to pod",
        "tell the worker who it is, and that it is restored",
    ]
    moved = replace(plan, sockets=Rewritten(b"", 3, 2, 1)).describe()
    assert "  sockets: 3 moved, 2 kept, 1 closed" in moved


def test_the_pods_own_devices(tmp_path: Path) -> None:
    """Those of the snapshot's spec go; of images without one nothing is known."""
    device = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}
    work = make_work(tmp_path, {"linux": {"devices": [device]}})
    old = DeviceNode("/dev/nvidia1", "c", 195, 1, 0o666, 0, 0)
    plan = make(work, bare_config(origin=replace(CONFIG.origin, devices=[old])))
    lines = plan.describe()
    at = lines.index("  remove the device node /dev/nvidia1")
    assert lines[at + 1] == "  make the device node /dev/nvidia0"
    assert plan.devices.gone == (old,)
    bare = planning.bare(work, tmp_path)
    assert bare.devices == replace(plan.devices, gone=())


def test_staging_is_told(tmp_path: Path) -> None:
    plan = replace(make(make_work(tmp_path), bare_config()), rewritten={"mm-1.img": b""})
    assert "  that of the GPU's driver first, in huge pages" in plan.describe()


def test_what_is_not_needed_is_not_described(tmp_path: Path) -> None:
    lines = make(make_work(tmp_path), bare_config(difference=False)).describe()
    assert [line for line in lines if line.startswith("lay")] == []


@pytest.mark.parametrize("kind", ["bind", "btrfs"])
def test_a_difference_without_a_place(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Unfit, match="no writable overlay"):
        make(without_rootfs(tmp_path, kind), bare_config())


def test_no_difference_needs_no_place(tmp_path: Path) -> None:
    plan = make(without_rootfs(tmp_path, "bind"), bare_config(difference=False))
    assert plan.difference is None


def test_a_root_that_the_caller_mounted(tmp_path: Path) -> None:
    plan = make(without_rootfs(tmp_path, ""), bare_config())
    assert (plan.difference, plan.upper, plan.scratch) == (None, None, None)


def test_without_a_difference_the_root_is_not_ours(tmp_path: Path) -> None:
    plan = make(make_work(tmp_path), bare_config(difference=False))
    assert (plan.difference, plan.upper, plan.scratch) == (None, None, None)


@pytest.mark.parametrize(
    "mounts", [[], [{"destination": "/dev/shm"}], [{**SHM, "destination": "/dev"}]]
)
def test_a_volume_that_the_pod_lacks(tmp_path: Path, mounts: list[dict[str, Any]]) -> None:
    with pytest.raises(Unfit, match="no volume at /dev/shm"):
        make(make_work(tmp_path, {"mounts": mounts}), replace(CONFIG, volumes=["/dev/shm"]))


def test_connections(tmp_path: Path) -> None:
    """Each is kept or closed in the images: CRIU is not to close them all."""
    options = make(make_work(tmp_path), bare_config(connections=Connections(2, 1)))
    assert "tcp-close" not in options.criu_options
    assert {"link-remap", "network-lock nftables"} <= set(options.criu_options)
    assert "--tcp-established" in options.runc_options


def test_images_of_which_nothing_is_known(tmp_path: Path) -> None:
    work = make_work(tmp_path, {"hostname": "pod"})
    plan = planning.bare(work, Path("/images"))
    assert (plan.snapshot, plan.images) == ("/images", Path("/images"))
    assert (plan.difference, plan.upper, plan.volumes, plan.mounts) == (None, None, (), ())
    assert plan.hostname == "pod"
    assert plan.describe()[-2:] == ["  memory: CRIU restores all of it", "set the host name to pod"]


def test_the_sandbox_has_the_host_name(tmp_path: Path) -> None:
    work = make_work(tmp_path, {"annotations": {"io.kubernetes.cri.sandbox-id": "sandbox"}})
    sandbox = tmp_path / "bundles" / "sandbox"
    sandbox.mkdir()
    (sandbox / "config.json").write_text(json.dumps({"hostname": "of-the-pod"}))
    assert make(work, bare_config()).hostname == "of-the-pod"
