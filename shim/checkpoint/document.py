"""What is noted of a container beside its memory: its config document, and what that rests on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from shim import __version__
from shim.checkpoint.contents import survey
from shim.checkpoint.device import Device
from shim.errors import CheckpointFailed
from shim.gpu import preload
from shim.lean.threads import at_once
from shim.restore import namespace
from shim.snapshot.config import FORMAT, SKELETON_FILE, File, Maker, SnapshotConfig
from shim.snapshot.host import criu_version, this_host
from shim.snapshot.image import image_of
from shim.snapshot.mounts import mounts_of
from shim.snapshot.origin import origin_of
from shim.snapshot.pieces import FILE, Pieces
from shim.snapshot.snapshot import CONFIG, READERS, checksum, size_of
from shim.timeline import Timeline
from shim.work import Work

_DESCRIPTORS = "descriptors.json"  # runc's, among CRIU's images


def made_by(work: Work) -> str:
    """Who has asked for a checkpoint: "thaw checkpoint", "containerd", "annotation" or "auto"."""
    asked: str = work.details.get("by", "")
    return asked or ("thaw checkpoint" if work.details["name"] else "containerd")


class Moment:
    """What is known of the container beside its memory, looked up before it is frozen.

    `pages` are the folders of the pieces; None if pages files lie whole among CRIU's `images`.
    """

    def __init__(
        self, work: Work, images: Path, extras: Path, pages: tuple[Path, ...] | None
    ) -> None:
        spec = work.bundle.spec()
        self.host = this_host(criu_version(work.config), gpus=False)
        self.contents = survey(spec, work)
        self.mounts = mounts_of(work.details["pid"])
        origin = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
        here = namespace.addresses(f"/proc/{work.details['pid']}/ns/net")
        self.origin = replace(origin, addresses=here)
        if origin.library:
            preload.carry(work.config.text("gpu.preloaded"), origin.library, str(images))
        self.difference = extras / "rootfs" if work.details["name"] else None
        self.bytes = 0
        self.device = Device()
        self._by = made_by(work)
        self._images = images
        self._extras = extras
        self._pages = pages

    def write_config(self, timeline: Timeline) -> None:
        """Write the config document: the last file of a snapshot."""
        with timeline.span("checksums"):
            files = _sums(self._files())
        sizes = self._sizes()
        self.bytes = sum(sizes.values())
        config = SnapshotConfig(
            format=FORMAT,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            origin=self.origin,
            host=replace(self.host, gpus=list(self.device.gpus)),
            mounts=self.mounts,
            volumes=[volume.destination for volume in self.contents.volumes],
            difference=self.difference is not None,
            connections=self.contents.connections,
            files=files,
            pages=self._page_sizes(),
            sizes=sizes,
            maker=Maker(__version__, socket.gethostname(), self._by),
            spans=list(timeline.spans),
            gpu=self.device.state,
        )
        path = self._extras / CONFIG
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(config.to_json())

    def _files(self) -> dict[str, Path]:
        """All files that are to be listed, by the names that they have in a snapshot."""
        found = {f"criu/{path.name}": path for path in _regular(self._images) if self._ours(path)}
        found |= {f"index/{path.name}": path for path in _regular(self._extras / "index")}
        bad = [name for name in found if not SKELETON_FILE.fullmatch(name)]
        if bad:
            raise CheckpointFailed(f"CRIU has made an image with a strange name: {bad[0]!a}")
        volumes = self._extras / "volumes"
        found |= {f"volumes/{path.name}": path for path in _regular(volumes)}
        parts = [path for path in _regular(self._extras) if path.name.startswith("rootfs.tar.")]
        return found | {path.name: path for path in parts}

    def _ours(self, path: Path) -> bool:
        """Whether it is one of CRIU's images; containerd's folder may have other files in it."""
        if self._pages is not None:
            return True
        image = path.suffix == ".img" or path.name == _DESCRIPTORS
        return image and not FILE.fullmatch(path.name)

    def _page_sizes(self) -> dict[str, int]:
        pieces = Pieces([self._images] if self._pages is None else self._pages)
        found = pieces.found_gpu()
        if self._pages is None:
            whole = [path for path in _regular(self._images) if FILE.fullmatch(path.name)]
            found |= {path.name: path for path in whole}
        else:
            found |= pieces.found()
        return {name: path.stat().st_size for name, path in sorted(found.items())}

    def _sizes(self) -> dict[str, int]:
        """Bytes on disk of each part."""
        parts = self._files()
        sizes = {
            "criu": size_of(self._images) + size_of(self._extras / "index"),
            "pages": sum(map(size_of, self._pages or ())),
            "volumes": _on_disk(path for name, path in parts.items() if name[:8] == "volumes/"),
        }
        if self.difference is not None:
            sizes["rootfs"] = _on_disk(path for name, path in parts.items() if "/" not in name)
        return sizes


def _regular(folder: Path) -> list[Path]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    found = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(found)


def _sums(files: dict[str, Path]) -> dict[str, File]:
    found = at_once(checksum, files.values(), READERS)
    return dict(zip(files, found, strict=True))


def _on_disk(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_blocks for path in paths) * 512
