"""Keeping a worker quiet while it is dumped: what its annotations say is done before and after.

A worker that speaks the contract is quiet by itself, and is told here when it can go on. One that
knows nothing of snapshots is put to sleep by one action and woken by another.
"""

from __future__ import annotations

import time
from typing import Any, Self

from shim.bundle import annotations_of
from shim.checkpoint.device import recover
from shim.conduct import Actions, actions
from shim.errors import ThawError, WorkerFailed
from shim.timeline import Timeline
from shim.work import Work
from shim.worker.actions import Worker, act
from shim.worker.control import RESTORED, Control, find


class Quiet:
    """A block in which a worker is quiet; leaving it by an exception resumes the worker.

    Within it, `over` says that the dump is done. `failure` is why the worker could not be resumed.
    """

    def __init__(self, work: Work, timeline: Timeline) -> None:
        self._actions = _actions(work)
        self._worker = _worker(work)
        self._control = _control(work)
        self._ends = bool(work.details["exit"] or work.details.get("ends"))
        self._timeline = timeline
        self._waits = False
        self._settled = False
        self._began = 0.0
        self.seconds = 0.0  # for which the worker was not at work
        self.failure = ""

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._waits = _is_ready(self._control)
        if self._actions.quiesce is None:
            return self
        try:
            with self._timeline.span("quiesce"):
                act(self._actions.quiesce, self._worker, self._actions.quiesce_timeout)
        except WorkerFailed as error:
            self._resume()  # it may be half asleep
            raise WorkerFailed(
                f"no snapshot is made, the worker cannot be quiesced: {error.message}",
                hint=error.hint or "see thaw.dev/quiesce; the container runs on",
            ) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._resume()

    def over(self) -> None:
        """The dump is done: let the worker go on, unless it ends now."""
        if not self._ends:
            self._resume()
            if self._waits:
                self._tell()
        self.seconds = time.monotonic() - self._began

    def explained(self, error: ThawError) -> ThawError:
        """An error that ended the block, with what it has left of the worker."""
        return type(error)(f"{error.message}\n{self.failure}", hint=error.hint)

    def _resume(self) -> None:
        settled, self._settled = self._settled, True
        if settled or self._actions.resume is None or self._worker.ended:
            return
        try:
            with self._timeline.span("resume"):
                act(self._actions.resume, self._worker, self._actions.resume_timeout)
        except WorkerFailed as error:
            self.failure = f"its worker cannot be resumed: {error.message}"

    def _tell(self) -> None:
        assert self._control is not None
        try:
            self._control.tell(RESTORED)
        except (ThawError, OSError) as error:
            self.failure = self.failure or f"its worker cannot be told: {error}"


def resume(work: Work) -> dict[str, Any]:
    """Do what an engine owed that died over a dump. Raises WorkerFailed, GpuFailed."""
    recover(work)
    acts = _actions(work)
    if acts.resume is not None:
        act(acts.resume, _worker(work), acts.resume_timeout)
    return {}


def _actions(work: Work) -> Actions:
    return actions(annotations_of(work.bundle.spec()))


def _worker(work: Work) -> Worker:
    return Worker(work.id, int(work.details["pid"]), work.runc)


def _control(work: Work) -> Control | None:
    try:
        return find(work.bundle.spec())
    except ThawError:
        return None  # what the pod calls so can be none


def _is_ready(control: Control | None) -> bool:
    try:
        return control is not None and control.ready()
    except (ThawError, OSError):
        return False
