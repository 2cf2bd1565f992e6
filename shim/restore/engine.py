"""Running a plan. In the engine process; see steps.py for what is done and plan.py for why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shim import audit
from shim.annotations import POD_NAME, POD_NAMESPACE
from shim.bundle import annotations_of, namespace_path, read_pid
from shim.conduct import Canary
from shim.config import Config
from shim.errors import Damaged, OtherContainer, RestoreFailed, ThawError, Unfit
from shim.gpu import preload
from shim.names import SNAPSHOTS
from shim.reference import parse
from shim.restore import addresses, huge, namespace
from shim.restore import plan as planning
from shim.restore.addresses import Rewritten
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory, ReadAhead
from shim.restore.descriptors import check_flags
from shim.restore.device import Device
from shim.restore.plan import Plan
from shim.restore.steps import Step, steps_of
from shim.snapshot import policy, privileges
from shim.snapshot.config import DAMAGED
from shim.snapshot.fit import LIBRARY_HINT, check, library_reasons
from shim.snapshot.host import require_criu, this_host
from shim.snapshot.image import image_of
from shim.snapshot.index import FOLDER as INDEX
from shim.snapshot.origin import origin_of
from shim.snapshot.snapshot import check_sums
from shim.snapshot.store import Snapshot, Stores, check_whole, held, open_at
from shim.task import contract
from shim.task.dumping import unmark
from shim.task.restoration import RUNS
from shim.timeline import Timeline
from shim.work import Work
from shim.worker import control
from shim.worker.identity import public


def restore(
    work: Work,
    ahead: ReadAhead | None = None,
    adoption: Adoption | None = None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Restore `work`'s container; answers its init's pid, the timeline, and how memory came.

    What `ahead`, `adoption` and `device` have begun is made use of; `adoption` is the caller's to
    finish. The marker stays: whoever gets the answer removes it, as a worker of which nobody has
    heard must be undone.

    Raises Unfit, Denied or NoSuchSnapshot before anything is touched, RestoreFailed and others
    after everything that was done has been undone again.
    """
    timeline = Timeline()
    adoption = adoption or Adoption()
    device = device or Device()
    path = Path(work.details["snapshot"])
    with held(path), _letting_go(device):
        with timeline.span("plan"):
            plan, memory = prepare(work, ahead, device, timeline)
        try:
            named = Stores.of(work.config).at(path) if work.details["name"] else None
            memory.hurry()
            memory.read_ahead()
            if plan.network:
                adoption.start(work.config)
            work.remember()
            _run(work, plan, steps_of(memory, adoption, device, timeline), timeline)
        except BaseException:
            memory.close()
            raise
        adoption.later(memory.close)  # gigabytes of buffers take their time
        adoption.later(device.close)
    # Nothing from here on may fail: the container runs.
    _record(work)
    if named is not None:
        store, id = named
        store.mark_used(id)
    return {
        "pid": read_pid(work.bundle.pid_file),
        "timeline": timeline.as_dict(),
        "spans": timeline.as_list(),
        "memory": {**memory.report(), **_report(plan), **device.report()},
        "identity": public(adoption.identity),
        "warnings": adoption.warnings,
    }


@contextmanager
def _letting_go(device: Device) -> Iterator[None]:
    """If the restore fails, a cold boot needs the GPUs; another container of the pod does not."""
    try:
        yield
    except OtherContainer:
        raise
    except BaseException:
        device.close()
        raise


def _report(plan: Plan) -> dict[str, str]:
    return {"sockets": plan.sockets.describe()} if plan.sockets is not None else {}


def _record(work: Work) -> None:
    """One line in the audit log; what fails or is refused is the daemon's to say."""
    notes = work.bundle.spec().get("annotations") or {}
    path = Path(work.details["snapshot"])
    pod, namespace = notes.get(POD_NAME, ""), notes.get(POD_NAMESPACE, "")
    try:
        digest = open_at(path).digest if work.details["name"] else ""
    except (ThawError, OSError):
        digest = ""
    audit.record(
        work.config,
        "restore",
        who=f"pod {namespace}/{pod}" if pod else "containerd",
        name=work.details["name"] or str(path),
        id=path.name if work.details["name"] else "",
        digest=digest,
        container=work.id,
        pod=pod,
        namespace=namespace,
        outcome="restored",
    )


def _run(work: Work, plan: Plan, steps: Sequence[Step], timeline: Timeline) -> None:
    done: list[Step] = []
    try:
        for step in steps:
            done.append(step)
            with timeline.span(step.name):
                step.do(work, plan)
    except (ThawError, OSError):
        take_back(done, work, plan)
        work.marker.unlink()
        raise


def undo(work: Work) -> dict[str, Any]:
    """Remove whatever an engine that died has left of its restore; no error if there is nothing."""
    if not work.marker.exists():
        return {}
    begun = json.loads(work.marker.read_text())
    snapshot = Path(begun["snapshot"])
    try:
        plan = _plan(work, *_open(work.config, snapshot, begun["name"]))
    except (
        ThawError,
        OSError,
    ):  # removed meanwhile: what it has brought along is not known any more
        plan = planning.bare(work, snapshot)
        if begun["name"]:
            plan = replace(plan, upper=work.upper, scratch=work.scratch)
    take_back(steps_of(Memory(None), Adoption(), Device()), work, plan)
    work.marker.unlink(missing_ok=True)
    unmark(str(work.folder), RUNS)
    return {}


def take_back(steps: Sequence[Step], work: Work, plan: Plan) -> None:
    """Undo every step, the last first; one that fails keeps none of the others from it."""
    failures = []
    for step in reversed(steps):
        try:
            step.undo(work, plan)
        except (ThawError, OSError) as error:
            failures.append(f"{step.name}: {error}")
    if failures:
        raise RestoreFailed(f"cannot undo {'; '.join(failures)}")


def prepare(
    work: Work,
    ahead: ReadAhead | None = None,
    device: Device | None = None,
    timeline: Timeline | None = None,
) -> tuple[Plan, Memory]:
    """What a restore of this container would do, and where its memory comes from.

    Raises Unfit if it cannot be done here.
    """
    timeline = timeline or Timeline()
    with timeline.span("open"):
        require_criu(work.config)
        spec = work.bundle.spec()
        name = work.details["name"]
        snapshot, images = _open(work.config, Path(work.details["snapshot"]), name)
    device = device or Device()
    if snapshot is not None:
        device.expect(work.config, snapshot.config, snapshot)
    uncontrolled = _is_uncontrolled(spec, snapshot)
    if uncontrolled:
        contract.withdraw(spec, str(work.folder))
    gpus: Sequence[tuple[str, str]] = ()
    if snapshot is not None:
        with timeline.span("judge"):
            _judge(work, spec, snapshot)
            preload.put(spec, _bring_library(work, snapshot))
        with timeline.span("gpus"):
            gpus = device.judge(work, spec, snapshot.config, snapshot)
    memory = memory_of(work, snapshot, images, ahead or ReadAhead())
    try:
        with timeline.span("files"):
            plan = planned(work, spec, snapshot, images, memory, uncontrolled=uncontrolled)
        staging = snapshot.config.gpu.processes if snapshot is not None else ()
        rewritten = huge.images(images, work.config, staging)
        plan = replace(plan, gpus=tuple(gpus), rewritten=rewritten)
        if plan.canary is not None:
            _check_canary(plan.canary)
        _refuse_a_live_root(plan)
    except BaseException:
        memory.close()
        raise
    return plan, memory


def planned(
    work: Work,
    spec: dict[str, Any],
    snapshot: Snapshot | None,
    images: Path,
    memory: Memory,
    *,
    uncontrolled: bool = False,
) -> Plan:
    """The plan, once the files have been found to be what they were. Raises Unfit, Damaged."""
    memory.check_files()
    if snapshot is not None:
        check_sums(snapshot, skeleton=memory.index is None)
    privileges.check(images, spec)
    check_flags(images)
    index = memory.index.folder if memory.index is not None else None
    sockets = _sockets(spec, snapshot, images)
    return _plan(work, snapshot, images, index, sockets, uncontrolled=uncontrolled)


def _is_uncontrolled(spec: dict[str, Any], snapshot: Snapshot | None) -> bool:
    """Whether the snapshot's container had no control directory where this one has its own."""
    if snapshot is None:
        return True
    place = control.place_of(spec)
    mounts = snapshot.config.origin.mounts
    return not any(os.path.normpath(mount.destination) == place for mount in mounts)


def _check_canary(canary: Canary) -> None:
    from shim.worker.canary import check_pattern

    check_pattern(canary)


def _judge(work: Work, spec: dict[str, Any], snapshot: Snapshot) -> None:
    """Raise Unfit or Denied unless this container may be restored from it."""
    live = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
    if work.details["name"] or live.namespace:  # containerd's folders may be a pod's image
        made_in = snapshot.config.origin.namespace
        by = snapshot.config.maker.by
        policy.check_namespace(work.config, made_in, live.namespace, snapshot.shared, by)
    if not snapshot.config.mounts:
        raise Damaged(f"{snapshot.path}: it lists no mounts, and every container has", hint=DAMAGED)
    check(snapshot.config, live, this_host(gpus=False), outright=work.details["outright"])
    notes = annotations_of(spec)
    for reason in library_reasons(snapshot.config, snapshot.criu, notes, work.config):
        raise Unfit(reason, hint=LIBRARY_HINT)
    check_whole(snapshot, sums=False)


def _bring_library(work: Work, snapshot: Snapshot) -> str:
    """The file of the GPU memory library that it needs: where the plan has it, see library_of."""
    digest = snapshot.config.origin.library
    folder = work.config.text("gpu.preloaded")
    return preload.bring(folder, digest, str(snapshot.criu)) if digest else ""


def memory_of(work: Work, snapshot: Snapshot | None, images: Path, ahead: ReadAhead) -> Memory:
    """Where the memory of a restore from these images comes from. Raises Unfit."""
    if snapshot is None:
        return ahead.take(images / INDEX, images, work.config)
    in_pieces = snapshot.pages != (images,)
    pages = snapshot.pages if in_pieces else None
    staging = snapshot.config.gpu.processes
    return ahead.take(snapshot.index, images, work.config, pages=pages, staging=staging)


def _refuse_a_live_root(plan: Plan) -> None:
    """Undoing empties the upper directory: what others have put there must not be lost."""
    if plan.upper is not None and os.listdir(plan.upper):
        raise Unfit(
            f"{plan.upper} is not empty", hint="somebody has written to the root file system"
        )


def _sockets(spec: dict[str, Any], snapshot: Snapshot | None, images: Path) -> Rewritten:
    """The snapshot's sockets, at the addresses that this pod has."""
    path = namespace_path(spec, "network")
    # A new one has no addresses; without an entry it is the host's, which is ours.
    new = [] if path == "" else namespace.addresses(path or "/proc/self/ns/net")
    old = snapshot.config.origin.addresses if snapshot is not None else None
    return addresses.for_pod(images, old, new)


def _plan(
    work: Work,
    snapshot: Snapshot | None,
    images: Path,
    index: Path | None = None,
    sockets: Rewritten | None = None,
    *,
    uncontrolled: bool = False,
) -> Plan:
    if snapshot is None:
        return planning.bare(work, images, index, sockets)
    spec = work.bundle.spec()
    config, path, pages = snapshot.config, snapshot.path, snapshot.pages
    return planning.make(
        work, spec, config, path, images, index, pages, sockets, uncontrolled=uncontrolled
    )


def _open(config: Config, path: Path, name: str) -> tuple[Snapshot | None, Path]:
    """A snapshot of the store, or a checkpoint that containerd handed over, ours or runc's.

    What has a name is a snapshot, whole or not: a bare checkpoint would not be judged.
    """
    if name:
        wanted = parse(name)
        store, id = Stores.of(config).at(path)
        snapshot = store.snapshot(id)
        if wanted.digest:
            from shim.snapshot.artifact import check_digest  # imports more than most have time for

            check_digest(snapshot, wanted.digest)
        return snapshot, snapshot.criu
    if not path.is_dir():  # as containerd's own shim says it: no word for what is not there
        raise RestoreFailed(f"no checkpoint in {path}", hint="has containerd unpacked it?")
    if (path / "criu").is_dir():
        stripes = [Path(stripe) / SNAPSHOTS / path.name for stripe in config.several("stripes")]
        snapshot = open_at(path, stripes)
        return snapshot, snapshot.criu
    from shim.snapshot.pack import unpacked

    extras = unpacked(path)
    return (open_at(extras, images=path) if extras else None), path
