"""Making a snapshot of a running container. Runs in the engine process.

Everything that must be of one moment is taken while CRIU holds the tasks frozen: its own images,
and at its `post-dump` stage their memory, the overlay's upper directory and the volumes. That stage
also comes before CRIU removes its link-remap files again, so the copies hold those. What only takes
time comes once they run again: packing, checksums, the way to the disk.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import audit
from shim.annotations import POD_NAME, POD_NAMESPACE
from shim.budget import available, budget_of
from shim.checkpoint.contents import save_difference, save_volumes
from shim.checkpoint.device import Device, suspended
from shim.checkpoint.document import Moment, made_by
from shim.checkpoint.pages import Pages, Parallel, Plain
from shim.checkpoint.quiet import Quiet
from shim.checkpoint.verifying import Verification
from shim.criu import GHOST_LIMIT, NETWORK_LOCK, Steering, log_tail
from shim.errors import (
    AlreadyExists,
    CheckpointFailed,
    FailedPrecondition,
    StoreFull,
    ThawError,
    TrialFailed,
)
from shim.gpu.hooks import mounting
from shim.removal import remove_folder
from shim.snapshot import archive, lost, retention
from shim.snapshot.fit import never_fits
from shim.snapshot.index import FOLDER as INDEX
from shim.snapshot.mounts import inside, mounts_of, unexpected
from shim.snapshot.origin import origin_of
from shim.snapshot.pack import FOLDER, pack
from shim.snapshot.policy import ITS_OWN
from shim.snapshot.store import Draft, Stores
from shim.snapshot.tree import open_directory
from shim.snapshot.writing import is_full, no_room
from shim.task.dumping import BEGUN, STOPPED, is_marked, mark
from shim.timeline import Timeline
from shim.work import Work


def checkpoint(work: Work, ends: list[Callable[[], None]] | None = None) -> dict[str, Any]:
    """Dump `work`'s container into the store, or into the folder that containerd named.

    `ends` gets what is to be called should this process end meanwhile. Answers path, id, bytes on
    disk, seconds, those for which the container stood still (`frozen`) and for which its worker was
    not at work (`quiet`), why that could not be resumed, if so, and whether it was `verified`.
    Raises CheckpointFailed with the tail of CRIU's log, TrialFailed, WorkerFailed, StoreFull,
    AlreadyExists; the container runs on then, and nothing is left of the snapshot.
    """
    timeline = Timeline()
    quiet = Quiet(work, timeline)
    verification = Verification(work, timeline, ends)
    # What others could write is refused when it is restored from; containerd's umask may be 0.
    umask = os.umask(0o077)
    try:
        if work.details["name"]:
            reply = _into_store(work, timeline, quiet, verification)
        else:
            path = Path(work.details["path"])
            reply = _into_folder(work, path, timeline, quiet, verification)
    except OSError as error:
        _record(work, outcome="failed", reason=str(error))
        raise
    except ThawError as error:
        _record(work, outcome="failed", reason=error.reason)
        if quiet.failure:
            raise quiet.explained(error) from error
        raise
    finally:
        os.umask(umask)
    made = {"id": reply.get("id", ""), "verified": verification.said, "gpu": _saver(reply["gpu"])}
    _record(work, outcome="made", **made)
    if work.details["name"]:
        retention.apply(Stores.of(work.config).first, work.config)
    reply |= {"quiet": quiet.seconds, "unresumed": quiet.failure, "verified": verification.said}
    return {**reply, "seconds": time.monotonic() - timeline.began}


def _saver(memory: Mapping[str, str]) -> str:
    """Who has saved a worker's GPU memory: the library, or the driver and why; empty: nobody."""
    because = memory.get("driver", "")
    return f"driver: {because}" if because else "library" if memory else ""


def _into_store(
    work: Work, timeline: Timeline, quiet: Quiet, verification: Verification
) -> dict[str, Any]:
    _refuse_hopeless(work)
    store = Stores.of(work.config).first
    with (
        _room(store.folder),
        store.draft(work.details["name"], bool(work.details.get("replace"))) as draft,
    ):
        target = _Target(
            images=draft.path / "criu",
            extras=draft.path,
            pages=draft.pages,
            publish=lambda: _publish(work, draft, verification),
        )
        target.images.mkdir(mode=0o700)
        with quiet:
            reply = _make(work, target, timeline, quiet)
            _publish(work, draft, verification)
        with suppress(OSError):
            lost.forget(store.folder, work.details["name"])  # by hand it can be done, after all
        return {**reply, "path": str(draft.path), "id": draft.id}


def _publish(work: Work, draft: Draft, verification: Verification) -> None:
    if draft.published:
        return
    verification.check(draft.path, draft.roots[1:])
    if work.details.get("shared"):
        draft.mark_shared()
    draft.publish()


def _into_folder(
    work: Work, images: Path, timeline: Timeline, quiet: Quiet, verification: Verification
) -> dict[str, Any]:
    """CRIU's images as they are in the folder itself, and our part in one file beside them."""
    extras = images / FOLDER
    shutil.rmtree(extras, ignore_errors=True)
    extras.mkdir(mode=0o700, parents=True)

    def publish() -> None:
        verification.check(extras, images=images)
        pack(images)

    target = _Target(images, extras, None, publish)
    try:
        with _room(images), quiet:
            reply = _make(work, target, timeline, quiet)
            if not work.details["exit"]:
                publish()
    finally:
        shutil.rmtree(extras, ignore_errors=True)
    return {**reply, "path": str(images)}


def _refuse_hopeless(work: Work) -> None:
    if work.upper is None and work.rootfs:
        raise FailedPrecondition(
            f"the root file system of {work.id} is no writable overlay",
            hint="its changes could not be kept; use the overlayfs snapshotter",
        )
    spec = work.bundle.spec()
    never = next(never_fits(origin_of(spec, "", "")), "")
    if never:
        raise FailedPrecondition(
            f"a snapshot of {work.id} could not be restored: {never}",
            hint="nothing can be restored into such a pod",
        )
    _refuse_mounted_beside(work, spec)


def _refuse_mounted_beside(work: Work, spec: Mapping[str, Any]) -> None:
    """CRIU dumps a bind mount of the node's files only if the spec says where they are from."""
    hooks = mounting(spec)
    if not hooks:
        return
    pid = int(work.details["pid"])
    found = unexpected(spec, mounts_of(pid), inside(f"/proc/{pid}/root"))
    if found:
        raise FailedPrecondition(
            f"{hooks[0]} has mounted what the spec of {work.id} does not know: {found[0]}",
            hint="give GPUs by CDI: containerd's own, or that of NVIDIA's runtime (mode cdi)",
        )


def _refuse_stopped(work: Work) -> None:
    """A signal that ends a worker may be in its images, and would end each that is restored.

    Whoever has asked for a snapshot by hand may want that one; other pods do not.
    """
    if made_by(work) in ITS_OWN and is_marked(str(work.folder), STOPPED):
        raise FailedPrecondition(
            f"container {work.id} has been told to stop",
            hint="no snapshot is made of it; the next one of its kind can be",
        )


class _room:  # noqa: N801 - reads as what it is: a context
    """A failure inside whose cause is that `folder` is full says so: StoreFull."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointFailed | OSError) and is_full(error):
            cause = str(error).splitlines()[0]
            raise no_room(self._folder, f"{cause}; the container runs on") from error


@dataclass(frozen=True)
class _Target:
    """Where one dump goes."""

    images: Path  # CRIU's
    extras: Path  # ours
    pages: tuple[Path, ...] | None  # for pieces; None: pages files lie whole among CRIU's images
    publish: Callable[[], None]


def _make(work: Work, target: _Target, timeline: Timeline, quiet: Quiet) -> dict[str, Any]:
    """Dump a quiet worker. A container that shall end does so only once all is published."""
    with timeline.span("survey"):
        taken = Moment(work, target.images, target.extras, target.pages)

    def at_post_dump(pages: Pages) -> None:
        taken.device.check()
        with timeline.span("pages"):
            pages.save()
        with timeline.span("difference"):
            save_difference(work.upper, taken.difference)
        with timeline.span("volumes"):
            save_volumes(taken.contents, target.extras)
        if work.details["exit"]:
            finish(pages)
            target.publish()

    def finish(pages: Pages) -> None:
        with timeline.span("write"):
            pages.finish()
            taken.device.finish()
        with timeline.span("index"):
            _index(pages, taken.device, target.extras / INDEX)
        with timeline.span("pack"):
            _pack(taken, target.extras)
        taken.write_config(timeline)

    def dump(pages: Pages) -> None:
        # containerd's own shim keeps the log of a checkpoint here; a snapshot has its own.
        named = bool(work.details["name"])
        log = target.extras / "log" if named else Path(work.bundle.path) / "work/criu-work"
        with pages:
            _dump(work, target.images, log, pages, at_post_dump, timeline)
            _refuse_stopped(work)
            pages.ensure_saved()
            taken.device.resume()
            quiet.over()
            if not work.details["exit"]:
                finish(pages)

    mark(str(work.folder), BEGUN)  # from here on nobody ends us; see task/dumping.py
    _refuse_stopped(work)
    with suspended(work, timeline) as taken.device:
        budget = _budget(work, taken.device)
        taken.device.save(_folders(target), budget)
        refused = _in_turn(_ways(work, target, budget), dump)
        memory = taken.device.report()
    return {
        "bytes": taken.bytes,
        "frozen": timeline.seconds("dump"),
        "refused": refused,  # why CRIU had to dump all of it
        "gpu": memory,
    }


def _folders(target: _Target) -> tuple[Path, ...]:
    """Where pieces go: among CRIU's images if those are all that there is."""
    if target.pages is None:
        return (target.images,)
    for folder in target.pages:
        folder.mkdir(mode=0o700, exist_ok=True)
    return target.pages


def _in_turn(ways: Iterator[Pages], dump: Callable[[Pages], None]) -> str:
    """Dump in the first way that does; answers why the one before it could not, if so."""
    refused = ""
    for pages in ways:
        try:
            dump(pages)
            break
        except CheckpointFailed:
            if not pages.refused:
                raise
            refused = pages.refused
    return refused


def _index(pages: Pages, device: Device, folder: Path) -> None:
    try:
        pages.index(folder)
        device.index(folder)
    except OSError as error:
        raise CheckpointFailed(
            f"cannot make the index {folder}: {error.strerror or error}", hint="is the disk full?"
        ) from error


def _pack(taken: Moment, extras: Path) -> None:
    """Turn the copies that were made while the container was frozen into archives."""
    folders = {} if taken.difference is None else {taken.difference: extras / "rootfs.tar"}
    for number in range(len(taken.contents.volumes)):
        saved = extras / "volumes" / str(number)
        folders[saved] = saved.with_suffix(".tar")
    for folder, base in folders.items():
        archive.pack(folder, base)
        remove_folder(str(folder))


def _budget(work: Work, device: Device) -> int:
    """Bytes that may wait for the disk of each: the host's memory, and the GPUs' if there is any.

    Both are read at the same time, and the worker waits for both.
    """
    whole = budget_of(work.config.number("checkpoint.memory"), available())
    return whole // 2 if device.copies else whole


def _ways(work: Work, target: _Target, budget: int) -> Iterator[Pages]:
    """Who writes the memory: the second is for what the first refuses."""
    if work.config.text("checkpoint.engine") == "native":
        yield Parallel(target.images, work.details["pid"], budget, pages=target.pages)
    yield Plain(target.images, pages=target.pages)


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
        if isinstance(steering.failure, AlreadyExists | StoreFull | TrialFailed):
            raise steering.failure from error  # no matter of this CRIU's
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


def _record(work: Work, **fields: str) -> None:
    notes = work.bundle.spec().get("annotations") or {}
    audit.record(
        work.config,
        "create",
        who=made_by(work),
        name=work.details["name"],
        container=work.id,
        pod=notes.get(POD_NAME, ""),
        namespace=notes.get(POD_NAMESPACE, ""),
        **fields,
    )
