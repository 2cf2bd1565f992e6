"""Making a snapshot of a running container. Runs in the engine process.

Everything that must be of one moment is taken while CRIU holds the tasks frozen: its own images,
and at its `post-dump` stage their memory, the overlay's upper directory and the volumes. That stage
also comes before CRIU removes its link-remap files again, so the copies hold those.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shim.budget import available, budget_of
from shim.checkpoint.contents import save_difference, save_volumes, survey
from shim.checkpoint.pages import Pages, Parallel, Plain
from shim.criu import GHOST_LIMIT, NETWORK_LOCK, Steering, log_tail
from shim.errors import CheckpointFailed, FailedPrecondition, ThawError
from shim.snapshot.config import FORMAT, SnapshotConfig
from shim.snapshot.fit import never_fits
from shim.snapshot.host import criu_version, this_host
from shim.snapshot.image import image_of
from shim.snapshot.index import FOLDER as INDEX
from shim.snapshot.mounts import mounts_of
from shim.snapshot.origin import origin_of
from shim.snapshot.pack import FOLDER, pack
from shim.snapshot.store import CONFIG, Store, images_in, size_of
from shim.snapshot.tree import open_directory
from shim.timeline import Timeline
from shim.work import Work


def checkpoint(work: Work) -> dict[str, Any]:
    """Dump `work`'s container into the store, or into the folder that containerd named.

    Answers path, bytes on disk, seconds, and seconds that the container stood still. Raises
    CheckpointFailed with the tail of CRIU's log; the container runs on then.
    """
    timeline = Timeline()
    name = work.details["name"]
    if not name:
        return _into_folder(work, Path(work.details["path"]), timeline)
    if work.upper is None and work.rootfs:
        raise FailedPrecondition(
            f"the root file system of {work.id} is no writable overlay",
            hint="its changes could not be kept; use the overlayfs snapshotter",
        )
    never = next(never_fits(origin_of(work.bundle.spec(), "", "")), "")
    if never:
        raise FailedPrecondition(
            f"a snapshot of {work.id} could not be restored: {never}",
            hint="nothing can be restored into such a pod",
        )
    store = Store(work.config.text("snapshots"))
    with store.draft(name) as draft:
        (draft.path / "criu").mkdir(mode=0o700)
        reply = _make(work, draft.path / "criu", draft.path, timeline, draft.publish)
    return {**reply, "path": str(store.folder / name), "seconds": time.monotonic() - timeline.began}


def _into_folder(work: Work, images: Path, timeline: Timeline) -> dict[str, Any]:
    extras = images / FOLDER
    shutil.rmtree(extras, ignore_errors=True)
    extras.mkdir(mode=0o700, parents=True)
    try:
        reply = _make(work, images, extras, timeline, lambda: pack(images))
        if not work.details["exit"]:
            pack(images)
    finally:
        shutil.rmtree(extras, ignore_errors=True)
    return reply


def _make(
    work: Work,
    images: Path,
    extras: Path,
    timeline: Timeline,
    publish: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Dump into two folders. A container that shall end does so only once all is published."""
    with timeline.span("survey"):
        taken = _Moment(work, images, extras)

    def at_post_dump(pages: Pages) -> None:
        with timeline.span("pages"):
            pages.save()
        with timeline.span("difference"):
            save_difference(work.upper, taken.difference)
        with timeline.span("volumes"):
            save_volumes(taken.contents, extras)
        if work.details["exit"]:
            finish(pages)
            publish()

    def finish(pages: Pages) -> None:
        with timeline.span("write"):
            pages.finish()
        with timeline.span("index"):
            _index(pages, extras / INDEX)
        taken.write_config(timeline)

    # containerd's own shim keeps the log of a checkpoint here; a snapshot has its own.
    log = extras / "log" if work.details["name"] else Path(work.bundle.path) / "work/criu-work"
    refused = ""
    for pages in _ways(work, images):
        try:
            with pages:
                _dump(work, images, log, pages, at_post_dump, timeline)
                pages.ensure_saved()
                if not work.details["exit"]:
                    finish(pages)
            break
        except CheckpointFailed:
            if not pages.refused:
                raise
            refused = pages.refused
    return {
        "path": str(images),
        "bytes": taken.bytes,
        "seconds": time.monotonic() - timeline.began,
        "frozen": timeline.seconds("dump"),
        "refused": refused,  # why CRIU had to dump all of it
    }


def _index(pages: Pages, folder: Path) -> None:
    try:
        pages.index(folder)
    except OSError as error:
        raise CheckpointFailed(
            f"cannot make the index {folder}: {error.strerror or error}", hint="is the disk full?"
        ) from error


def _ways(work: Work, images: Path) -> Iterator[Pages]:
    """Who writes the memory: the second is for what the first refuses."""
    if work.config.text("checkpoint.engine") == "native":
        budget = budget_of(work.config.number("checkpoint.memory"), available())
        yield Parallel(images, work.details["pid"], budget)
    yield Plain(images)


class _Moment:
    """What is known of the container beside its memory, looked up before it is frozen."""

    def __init__(self, work: Work, images: Path, extras: Path) -> None:
        spec = work.bundle.spec()
        self.host = this_host(criu_version(work.config))
        self.contents = survey(spec, work)
        self.mounts = mounts_of(work.details["pid"])
        self.origin = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
        self.difference = extras / "rootfs" if work.details["name"] else None
        self.bytes = 0
        self._images = images
        self._extras = extras

    def write_config(self, timeline: Timeline) -> None:
        """Write the config document: the last file of a snapshot."""
        sizes = {"criu": size_of(self._images)}
        if self.difference is not None:
            sizes["rootfs"] = size_of(self.difference)
        sizes["volumes"] = size_of(self._extras / "volumes")
        self.bytes = sum(sizes.values())
        config = SnapshotConfig(
            format=FORMAT,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            origin=self.origin,
            host=self.host,
            mounts=self.mounts,
            volumes=[volume.destination for volume in self.contents.volumes],
            difference=self.difference is not None,
            connections=self.contents.connections,
            images=images_in(self._images),
            sizes=sizes,
            timeline=timeline.as_dict(),
        )
        (self._extras / CONFIG).write_text(config.to_json())


def _dump(
    work: Work,
    images: Path,
    log: Path,
    pages: Pages,
    at_post_dump: Callable[[Pages], None],
    timeline: Timeline,
) -> None:
    work_path = work.details.get("work_path")
    log = Path(work_path) if work_path else log
    log.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = ["--image-path", str(images), "--work-path", str(log)]
    options += ["--tcp-established", "--ext-unix-sk", "--file-locks"]
    if not work.details["exit"]:
        options.append("--leave-running")
    if work.details.get("cgroups_mode"):
        options += ["--manage-cgroups-mode", work.details["cgroups_mode"]]
    criu = [NETWORK_LOCK, "link-remap", f"ghost-limit {GHOST_LIMIT}"]
    actions = {"pre-dump": lambda _: pages.divert(), "post-dump": lambda _: at_post_dump(pages)}
    steering = Steering(work.folder, criu, actions)
    written = open_directory(log)  # by descriptor: a snapshot may have got its name by the end
    try:
        with steering, timeline.span("dump"):
            work.runc.checkpoint(options)
    except ThawError as error:
        ours = Path(f"/proc/self/fd/{written}/dump.log")
        kept = _keep_log(ours, Path(work.bundle.path) / "criu-dump.log")
        cause = steering.failure or error
        tail = log_tail(kept)
        raise CheckpointFailed(
            f"cannot dump {work.id}: {cause}; see {kept}\n{tail}".rstrip(),
            hint="the container runs on",
        ) from error
    finally:
        os.close(written)


def _keep_log(log: Path, kept: Path) -> Path:
    try:
        shutil.copyfile(log, kept)
    except OSError:
        pass
    return kept
