"""What one restore will do, computed before anything is touched: pure data, from pure functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from shim.budget import GIB
from shim.bundle import annotations_of, hostname_of, namespace_path
from shim.cgroup import unified_path
from shim.conduct import Action, Canary, actions, canary
from shim.criu import NETWORK_LOCK
from shim.errors import Unfit
from shim.gpu import preload
from shim.lean.values import Value
from shim.namespaces import is_own
from shim.restore.addresses import Rewritten
from shim.snapshot.archive import Archive
from shim.snapshot.config import MountPoint, SnapshotConfig
from shim.snapshot.nodes import Exchange, exchange
from shim.snapshot.pieces import parse
from shim.work import Work


class SavedVolume(Value):
    """Saved contents, and the host folder that they go back into."""

    saved: Archive
    source: str
    destination: str


class Plan(Value):
    """Every step of one restore with its parameters; None or empty means the step is not needed."""

    snapshot: str
    images: Path
    index: Path | None  # of the memory that we fill; None: CRIU restores all of it
    pages: tuple[Path, ...]  # folders with pieces of pages files, which CRIU must get whole
    assembled: Path | None  # where it gets them: beside the snapshots, where there is room
    difference: Archive | None
    upper: Path | None
    scratch: Path | None
    volumes: tuple[SavedVolume, ...]
    hostname: str  # the pod's; CRIU writes the snapshot's over it
    runc_options: tuple[str, ...]
    criu_options: tuple[str, ...]
    mounts: tuple[MountPoint, ...]  # as they must be afterwards
    sockets: Rewritten | None = None  # at the pod's own addresses; None: not looked at
    uncontrolled: bool = False  # the snapshot knows nothing of a control directory
    library: str = ""  # the version of the GPU memory library that it has mapped: its file
    network: str = ""  # the path of the pod's network namespace; empty: it is in none of a pod
    resume: Action | None = None
    resume_timeout: float = 0.0  # seconds
    canary: Canary | None = None
    cuda: tuple[int, ...] = ()  # pids inside whose GPU state lies in their memory
    gpu_memory: int = 0  # bytes of GPU memory that do not come by the driver
    gpus: tuple[tuple[str, str], ...] = ()  # UUIDs: that was, that is now; empty: the same
    devices: Exchange = field(default_factory=Exchange)  # of device nodes
    rewritten: Mapping[str, bytes] = field(default_factory=dict)  # images of ours in CRIU's place

    def describe(self) -> list[str]:
        """The plan in words, one step a line, in the order in which they are done."""
        lines = [f"restore the snapshot {self.snapshot}"]
        if self.index:
            lines.append(f"read the memory ahead that {self.index} lists")
        lines += [f"lay {v.saved} into {v.destination} ({v.source})" for v in self.volumes]
        if self.difference:
            lines.append(f"lay {self.difference} into {self.upper}, then mount the root on it")
        if self.assembled:
            lines.append(f"put the pages files together in {self.assembled}")
        if self.library:
            lines.append(f"mount the GPU memory library {self.library}")
        if self.network:
            lines.append(f"let nothing pass in {self.network} until the worker shall be seen")
        lines.append(f"runc restore {' '.join(self.runc_options)}")
        lines += [f"  criu: {option}" for option in self.criu_options]
        if self.sockets is not None:
            lines.append(f"  sockets: {self.sockets.describe()}")
        filler = "we fill it past CRIU" if self.index else "CRIU restores all of it"
        if self.mounts:
            count = len(self.mounts)
            lines.append(f"  check {count} mounts, and that the pod's spec asks for each")
        lines += [f"  remove the device node {node.path}" for node in self.devices.gone]
        lines += [f"  make the device node {node.path}" for node in self.devices.made]
        lines.append(f"  memory: {filler}")
        if self.rewritten:
            lines.append("  that of the GPU's driver first, in huge pages")
        lines += self._describe_device()
        if self.hostname:
            lines.append(f"set the host name to {self.hostname}")
        return lines + self._describe_adoption()

    def _describe_device(self) -> list[str]:
        if not self.cuda:
            return []
        count = len(self.cuda)
        words = f"process {self.cuda[0]}" if count == 1 else f"{count} processes"
        lines = [f"give {words} the GPU state back, then unlock"]
        lines += [f"  {old} becomes {new}" for old, new in self.gpus]
        if self.gpu_memory:
            size = f"{self.gpu_memory / GIB:.1f} GiB"
            lines.append(f"  hand over {size} of GPU memory that was filled meanwhile")
        return lines

    def _describe_adoption(self) -> list[str]:
        lines = ["run the network hook"] if self.network else []
        if not self.uncontrolled:
            lines.append("tell the worker who it is, and that it is restored")
        if self.resume is not None:
            lines.append(f"resume it within {self.resume_timeout:g} s: {self.resume}")
        if self.canary is not None:
            lines.append(f"have it prove itself within {self.canary.timeout:g} s: {self.canary}")
        return lines


def make(
    work: Work,
    spec: dict[str, Any],
    config: SnapshotConfig,
    folder: Path,
    images: Path,
    index: Path | None = None,
    pages: Sequence[Path] = (),
    sockets: Rewritten | None = None,
    *,
    uncontrolled: bool = False,
) -> Plan:
    """The plan for restoring the snapshot in `folder` into `work`'s container.

    `pages` are the folders with the pieces of its pages files; as a rule the one in `folder`.
    `sockets` are its sockets at the pod's addresses, where these are known. Raises Unfit if the
    root file system or the volumes have no place for the saved contents.
    """
    if config.difference and work.rootfs and work.upper is None:
        raise Unfit(
            "the root file system is no writable overlay",
            hint="the snapshot's changes have no place; use the overlayfs snapshotter",
        )
    in_pieces = index is None and any(parse(name) for name in config.pages)
    assembled = assembled_images(work) if in_pieces else None
    return Plan(
        snapshot=str(folder),
        images=images,
        index=index,
        pages=(tuple(pages) or (folder / "pages",)) if in_pieces else (),
        assembled=assembled,
        difference=Archive(folder / "rootfs.tar") if config.difference and work.upper else None,
        # Without a difference the root is containerd's affair, and may hold something already.
        upper=work.upper if config.difference else None,
        scratch=work.scratch if config.difference else None,
        volumes=tuple(_volumes(spec, config, folder)),
        hostname=hostname_of(spec, work.bundle),
        runc_options=_runc_options(work),
        criu_options=_criu_options(work, spec),
        mounts=tuple(config.mounts),
        sockets=sockets,
        uncontrolled=uncontrolled,
        library=library_of(work, config),
        cuda=tuple(config.gpu.pids),
        gpu_memory=sum(region.size for region in config.gpu.regions),
        devices=exchange(config.origin.devices, spec),
        **_adoption(spec),
    )


def bare(
    work: Work, images: Path, index: Path | None = None, sockets: Rewritten | None = None
) -> Plan:
    """The plan for images of which nothing is known but that containerd handed them over."""
    spec = work.bundle.spec()
    return Plan(
        snapshot=str(images),
        images=images,
        index=index,
        pages=(),
        assembled=None,
        difference=None,
        upper=None,
        scratch=None,
        volumes=(),
        hostname=hostname_of(spec, work.bundle),
        runc_options=_runc_options(work),
        criu_options=_criu_options(work, spec),
        mounts=(),
        sockets=sockets,
        uncontrolled=True,
        devices=exchange((), spec),
        **_adoption(spec),
    )


def _adoption(spec: dict[str, Any]) -> dict[str, Any]:
    """What the pod wants done to a restored worker before it is seen. Raises BadAnnotation."""
    notes = annotations_of(spec)
    asked = actions(notes)
    network = namespace_path(spec, "network") or ""
    return {
        "network": "" if is_own(network, "net") else network,
        "resume": asked.resume,
        "resume_timeout": asked.resume_timeout,
        "canary": canary(notes),
    }


def library_of(work: Work, config: SnapshotConfig) -> str:
    """The file of the GPU memory library that a snapshot needs; empty: it needs none."""
    digest = config.origin.library
    return preload.path_of(work.config.text("gpu.preloaded"), digest) if digest else ""


def linked_images(work: Work) -> Path:
    """Where CRIU finds its images: a folder of links, as ours take the place of some."""
    return work.folder / "images"


def assembled_images(work: Work) -> Path:
    """Where CRIU finds its pages files when they are pieces: on the disk of the first store.

    A draft's name, so that it is swept if nobody comes to undo it; see store.py.
    """
    return Path(work.config.several("snapshots")[0]) / f".draft-criu-{work.id}"


def _volumes(spec: dict[str, Any], config: SnapshotConfig, folder: Path) -> list[SavedVolume]:
    sources = {
        os.path.normpath(mount["destination"]): mount.get("source", "")
        for mount in spec.get("mounts") or []
    }
    volumes = []
    for number, destination in enumerate(config.volumes):
        if not sources.get(destination):
            raise Unfit(
                f"the pod has no volume at {destination}",
                hint="the worker maps files there that the snapshot brings along",
            )
        volumes.append(
            SavedVolume(
                Archive(folder / "volumes" / f"{number}.tar"), sources[destination], destination
            )
        )
    return volumes


def _runc_options(work: Work) -> tuple[str, ...]:
    images, log = linked_images(work), work.folder / "criu-work"
    options = ["--image-path", str(images), "--work-path", str(log)]
    return (*options, "--tcp-established", "--ext-unix-sk", "--file-locks")


def _criu_options(work: Work, spec: dict[str, Any]) -> tuple[str, ...]:
    return (NETWORK_LOCK, "link-remap", *_cgroup_options(work, spec))


def _cgroup_options(work: Work, spec: dict[str, Any]) -> tuple[str, ...]:
    """runc has put CRIU, and with it all that it forks, into the container's cgroup already.

    So CRIU may leave cgroups alone (said to CRIU, because `runc restore` before 1.2 drops the flag
    for it): otherwise it mounts the host's cgroup trees to do that again and leaves them if it is
    killed. Only a cgroup namespace, which version 2 gives every pod, must be made by CRIU, or the
    container would see the host's whole tree. It has to be told the new cgroup then, as runc
    before 1.2 does for version 1 only: it would make the old container's anew, and put the
    processes there, out of reach of limits, stats and kill.
    """
    if namespace_path(spec, "cgroup") is None:
        return ("manage-cgroups=ignore",)  # an optional argument: with a space, CRIU drops it
    path = spec["linux"].get("cgroupsPath", "")
    group = unified_path(path, work.id, work.config.flag("SystemdCgroup"))
    return (f"cgroup-root :{group}",) if group else ()
