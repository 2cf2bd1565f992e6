"""The steps of a restore. Each can be done once and undone at any time, done or not.

Undoing works from the plan alone: an engine that was killed half-way through a step has left no
other memory of it.
"""

# All steps take the same two values, whether they need both or not.
# ruff: noqa: ARG001

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shim.bundle import annotations_of, namespace_path, read_pid
from shim.cgroup import Cgroup, of_spec
from shim.criu import Steering, log_tail
from shim.errors import NotFound, RestoreFailed, ThawError
from shim.gpu import preload
from shim.lean.values import Value
from shim.mount import mount_all, unmount_all
from shim.removal import remove_folder
from shim.restore import adoption as adopting
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory
from shim.restore.device import Device
from shim.restore.hostname import set_hostname
from shim.restore.plan import Plan, linked_images
from shim.restore.stages import Stages
from shim.snapshot.locks import claim
from shim.snapshot.pieces import Pieces
from shim.snapshot.tree import open_directory
from shim.task import contract
from shim.task.dumping import unmark
from shim.task.restoration import RUNS
from shim.timeline import Timeline
from shim.work import Work


class Step(Value):
    """One step: its span's name, what it does, and what takes it back."""

    name: str
    do: Callable[[Work, Plan], None]
    undo: Callable[[Work, Plan], None]


def withdraw_control(work: Work, plan: Plan) -> None:
    """Mounts come back as CRIU has dumped them: one more cannot be added."""
    if plan.uncontrolled:
        spec = work.bundle.spec()
        if contract.withdraw(spec, str(work.folder)):
            work.bundle.save(spec)


def give_control_again(work: Work, plan: Plan) -> None:
    """Undo `withdraw_control`, and whatever has been said in the directory since."""
    source = work.folder / contract.FOLDER
    if source.is_dir():
        spec = work.bundle.spec()
        contract.inject(spec, str(source))
        work.bundle.save(spec)
    adopting.forget(work)  # what the failed worker was told, and what it has written: it has ended


def exchange_library(work: Work, plan: Plan) -> None:
    """Mount the version that the processes have mapped, and none if they were without."""
    spec = work.bundle.spec()
    if plan.library or preload.digest_of(spec):
        preload.put(spec, plan.library)
        work.bundle.save(spec)


def provide_library_again(work: Work, plan: Plan) -> None:
    """Undo `exchange_library`: a cold boot gets this Thaw's version, or none."""
    spec = work.bundle.spec()
    before = dict(spec)
    contract.provide_library(work.id, spec, annotations_of(spec), work.config)
    if spec != before:
        work.bundle.save(spec)


def lay_difference(work: Work, plan: Plan) -> None:
    """Fill the empty upper directory before it is mounted, so a later snapshot holds it again."""
    if plan.difference is not None and plan.upper is not None:
        with _directory(plan.upper) as target:
            plan.difference.extract(target, whiteouts=True)


def clear_upper(work: Work, plan: Plan) -> None:
    """Empty the upper and the work directory, and make them anew."""
    import shutil  # it imports three ways to compress, and a restore that goes well needs none

    for folder in (plan.upper, plan.scratch):
        if folder is None:
            continue
        mode, owner = 0o755, (0, 0)  # as containerd makes them, should an undo have died here
        if folder.exists():
            info = os.stat(folder)
            mode, owner = info.st_mode & 0o7777, (info.st_uid, info.st_gid)
            shutil.rmtree(folder)
        folder.mkdir()
        os.chown(folder, *owner)
        os.chmod(folder, mode)


def lay_volumes(work: Work, plan: Plan) -> None:
    """Put the saved contents of the tmpfs volumes into the new pod's."""
    for volume in plan.volumes:
        with _directory(volume.source) as target:
            volume.saved.extract(target, whiteouts=False)


def clear_volumes(work: Work, plan: Plan) -> None:
    """Remove what `lay_volumes` put there; files of others stay."""
    for volume in plan.volumes:
        with _directory(volume.source) as target:
            volume.saved.remove_extracted(target, whiteouts=False)


@contextmanager
def _directory(path: str | Path) -> Iterator[int]:
    fd = open_directory(path)
    try:
        yield fd
    finally:
        os.close(fd)


def mount_rootfs(work: Work, plan: Plan) -> None:
    """Mount what containerd sent with Create."""
    mount_all(work.rootfs, work.bundle.rootfs)


def unmount_rootfs(work: Work, plan: Plan) -> None:
    """Undo `mount_rootfs`."""
    if work.rootfs:
        unmount_all(work.bundle.rootfs)


_locks: dict[Path, int] = {}  # of the folders below: whoever sweeps drafts passes these by


def assemble(work: Work, plan: Plan) -> None:
    """Put pages files that are in pieces together, for a CRIU that restores all of the memory."""
    if plan.assembled is None:
        return
    remove_folder(str(plan.assembled))  # of an engine that was killed
    plan.assembled.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _locks[plan.assembled] = _locked(plan.assembled)
    Pieces(plan.pages).assemble(plan.images, plan.assembled)


def _locked(folder: Path) -> int:
    """Make a folder and lock it. A sweeper may come before the lock."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            return claim(folder)
        except FileNotFoundError:
            continue


def remove_assembled(work: Work, plan: Plan) -> None:
    """Undo `assemble`, and what comes of it once CRIU has read all."""
    if plan.assembled is not None:
        lock = _locks.pop(plan.assembled, -1)
        try:
            remove_folder(str(plan.assembled))
        finally:
            if lock >= 0:
                os.close(lock)


def run_criu(work: Work, plan: Plan, memory: Memory, device: Device, timeline: Timeline) -> None:
    """`runc restore`: CRIU makes the processes in the new pod's namespaces, cgroup and mounts.

    What is looked at, set and filled before any of them runs: stages.py.
    """
    log = work.folder / "criu-work"
    log.mkdir(mode=0o700, exist_ok=True)
    stages = Stages(work, plan, memory, device, timeline)
    steering = Steering(work.folder, list(plan.criu_options), stages.actions())
    try:
        with steering:
            _runc_restore(work, plan)
    except ThawError as error:
        unmark(str(work.folder), RUNS)  # CRIU has ended, or was killed, before it let them go
        if isinstance(steering.failure, ThawError):
            raise steering.failure from error
        tail = log_tail(log / "restore.log")
        hint = "the lines are CRIU's own log" if tail else "CRIU wrote no log: try `criu check`"
        cause = steering.failure or error.message
        raise RestoreFailed(f"{cause}\n{tail}".rstrip(), hint=hint) from error
    stages.refuse_unseen()


def _runc_restore(work: Work, plan: Plan) -> None:
    bundle, console = work.bundle, work.details.get("console", "")
    work.runc.restore(bundle.path, bundle.pid_file, work.fds, plan.runc_options, console)


def end_processes(work: Work, plan: Plan) -> None:
    """Kill and forget whatever runc and CRIU have made."""
    group = _cgroup(work)
    if group is not None:
        group.kill()
    work.runc.delete(force=True)
    group = _cgroup(work)  # looked up anew: runc has removed what it knew of
    if group is not None:
        group.remove()
    Path(work.bundle.pid_file).unlink(missing_ok=True)
    remove_folder(f"{work.folder}/criu-work")
    remove_folder(str(linked_images(work)))


def name_host(work: Work, plan: Plan) -> None:
    """The pod's other containers share its host name, and CRIU has written the old pod's there."""
    if plan.hostname:
        set_hostname(f"/proc/{read_pid(work.bundle.pid_file)}/ns/uts", plan.hostname)


def name_host_again(work: Work, plan: Plan) -> None:
    """Undo what CRIU did; a namespace of the container's own goes with it."""
    path = namespace_path(work.bundle.spec(), "uts")
    if plan.hostname and path and os.path.exists(path):
        set_hostname(path, plan.hostname)


def nothing(work: Work, plan: Plan) -> None:
    """For a step that leaves nothing behind."""


def _cgroup(work: Work) -> Cgroup | None:
    """Where the container is or would be; None if there is no such cgroup (any more)."""
    path: str = (work.bundle.spec().get("linux") or {}).get("cgroupsPath", "")
    try:
        return of_spec(path, work.id, work.config.flag("SystemdCgroup"))
    except NotFound:
        return None


def steps_of(
    memory: Memory, adoption: Adoption, device: Device, timeline: Timeline | None = None
) -> tuple[Step, ...]:
    """The steps of a restore, in order: CRIU leaves the bulk of memory to `memory`.

    `timeline`: what a step is made of is noted there.
    """
    criu = partial(run_criu, memory=memory, device=device, timeline=timeline or Timeline())
    return (
        Step("control", withdraw_control, give_control_again),
        Step("library", exchange_library, provide_library_again),
        Step("volumes", lay_volumes, clear_volumes),
        Step("difference", lay_difference, clear_upper),
        Step("rootfs", mount_rootfs, unmount_rootfs),
        Step("assemble", assemble, remove_assembled),
        Step("hold", adoption.hold, adopting.release),
        Step("criu", criu, end_processes),
        Step("device", device.resume, nothing),  # the processes end with CRIU's step
        Step("disassemble", remove_assembled, nothing),
        Step("hostname", name_host, name_host_again),
        Step("adopt", adoption.adopt, nothing),
        Step("introduce", adoption.introduce, nothing),
        Step("complete", adoption.complete, nothing),
        Step("resume", adoption.resume, nothing),
        Step("canary", adoption.prove, nothing),
        Step("release", adoption.let_pass, nothing),
    )
