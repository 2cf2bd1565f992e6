"""Running a plan. In the engine process; see steps.py for what is done and plan.py for why."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shim.bundle import read_pid
from shim.errors import RestoreFailed, ThawError, Unfit
from shim.restore import plan as planning
from shim.restore.bulk import Memory, ReadAhead
from shim.restore.plan import Plan
from shim.restore.steps import STEPS, Step, filled_by
from shim.snapshot.fit import check
from shim.snapshot.host import require_criu, this_host
from shim.snapshot.image import image_of
from shim.snapshot.index import FOLDER as INDEX
from shim.snapshot.origin import origin_of
from shim.snapshot.pack import unpacked
from shim.snapshot.store import Snapshot, Store, check_whole, held, open_at
from shim.timeline import Timeline
from shim.work import Work


def restore(work: Work, ahead: ReadAhead | None = None) -> dict[str, Any]:
    """Restore `work`'s container; answers its init's pid, the timeline, and how memory came.

    Raises Unfit before anything is touched, RestoreFailed and others after everything that was
    done has been undone again.
    """
    timeline = Timeline()
    with held(Path(work.details["snapshot"])):
        with timeline.span("plan"):
            plan, memory = prepare(work, ahead)
        try:
            memory.read_ahead()
            work.remember()
            _run(work, plan, filled_by(memory, STEPS), timeline)
            work.marker.unlink()
        finally:
            memory.close()
    return {
        "pid": read_pid(work.bundle.pid_file),
        "timeline": timeline.as_dict(),
        "memory": memory.report(),
    }


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
        plan = _plan(work, *_open(snapshot, begun["name"]))
    except (Unfit, OSError):  # removed meanwhile: what it has brought along is not known any more
        plan = planning.bare(work, snapshot)
        if begun["name"]:
            plan = replace(plan, upper=work.upper, scratch=work.scratch)
    take_back(STEPS, work, plan)
    work.marker.unlink(missing_ok=True)
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


def prepare(work: Work, ahead: ReadAhead | None = None) -> tuple[Plan, Memory]:
    """What a restore of this container would do, and where its memory comes from.

    Raises Unfit if it cannot be done here.
    """
    require_criu(work.config)
    spec = work.bundle.spec()
    name = work.details["name"]
    path = Path(work.details["snapshot"])
    if name:
        Store(work.config.text("snapshots")).open(name)
    snapshot, images = _open(path, name)
    if snapshot is not None:
        live = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
        check(snapshot.config, live, this_host(), outright=work.details["outright"])
        check_whole(snapshot, images)
    folder = (snapshot.path if snapshot is not None else images) / INDEX
    memory = (ahead or ReadAhead()).take(folder, images, work.config)
    try:
        memory.check_files()
        plan = _plan(work, snapshot, images, memory.index)
        _refuse_a_live_root(plan)
    except BaseException:
        memory.close()
        raise
    return plan, memory


def _refuse_a_live_root(plan: Plan) -> None:
    """Undoing empties the upper directory: what others have put there must not be lost."""
    if plan.upper is not None and os.listdir(plan.upper):
        raise Unfit(
            f"{plan.upper} is not empty", hint="somebody has written to the root file system"
        )


def _plan(work: Work, snapshot: Snapshot | None, images: Path, index: Path | None = None) -> Plan:
    if snapshot is None:
        return planning.bare(work, images, index)
    spec = work.bundle.spec()
    return planning.make(work, spec, snapshot.config, snapshot.path, images, index)


def _open(path: Path, name: str) -> tuple[Snapshot | None, Path]:
    """A snapshot of the store, or a checkpoint that containerd handed over, ours or runc's.

    What has a name is a snapshot, whole or not: a bare checkpoint would not be judged.
    """
    if name or (path / "criu").is_dir():
        return open_at(path), path / "criu"
    extras = unpacked(path)
    return (open_at(extras) if extras else None), path
