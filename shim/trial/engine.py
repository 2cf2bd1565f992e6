"""Running a trial: what is done, in which order, and how all of it goes again.

It is the restore that the snapshot is for, by the same steps, but for those that make a container
the pod's: nothing is told to the restored processes, nobody is told of them, and they are killed
as soon as they run. Processes that use a GPU have it back by then: what the driver's restore
reports shows only there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from shim.budget import GIB, available
from shim.bundle import Bundle, read_pid, write_atomically
from shim.cgroup import of_spec
from shim.criu import CONFIG as CRIU_CONFIG
from shim.errors import GpuFailed, RestoreFailed, ThawError, Unfit
from shim.namespaces import in_thread
from shim.removal import remove_folder
from shim.restore import plan as planning
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory, ReadAhead
from shim.restore.device import Device
from shim.restore.engine import memory_of, planned
from shim.restore.plan import Plan, assembled_images
from shim.restore.steps import end_processes, steps_of
from shim.snapshot.locks import claim
from shim.snapshot.mounts import Resolve, inside
from shim.snapshot.pieces import gpu_number
from shim.snapshot.snapshot import Snapshot, check_whole
from shim.trial import REQUEST, folder_of
from shim.trial.spec import as_tried, cgroups_path, derived, reasons
from shim.trial.world import Given, give_root, give_volumes, own_mounts, own_network, streams
from shim.work import Work

# Of a restore's steps (restore/steps.py). The others make it the pod's.
_STEPS = ("volumes", "difference", "rootfs", "assemble", "criu", "device", "disassemble")
_PAUSE = 0.05  # seconds between two looks whether it is over, or is to be
_FOREVER = float("inf")
_NO_ROOM = "OUT_OF_MEMORY"  # in the name of the driver's result, see gpu/results.py


class NotTried(Exception):
    """A trial is not possible, which says nothing of the snapshot."""


class Trial:
    """One trial of `snapshot`, which was made of `work`'s container and is not published yet."""

    def __init__(self, work: Work, snapshot: Snapshot) -> None:
        self._live = work
        self._snapshot = snapshot
        self._trial = _trial_of(work)
        self._over = threading.Event()
        self._ended: Exception | None = None  # why it had to end

    def run(self) -> None:
        """Restore it and throw that away. Raises NotTried, or why it cannot be restored."""
        for reason in _obstacles(self._live, self._snapshot):
            raise NotTried(reason)
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            with _scratch(self._live):
                in_thread(self._restore)
        except (ThawError, OSError) as error:
            if self._ended is not None:
                raise self._ended from error
            raise
        finally:
            self._over.set()

    def end(self, why: Exception, seconds: float = _FOREVER) -> None:
        """Make it fail, from another thread, and wait until nothing is left of it."""
        self._ended = self._ended or why
        end = time.monotonic() + seconds
        while not self._over.wait(_PAUSE) and time.monotonic() < end:
            _kill(self._trial)

    def _watch(self) -> None:
        """Who wants its original removed shall not wait for it, nor anybody longer than allowed."""
        seconds = self._live.config.number("restore.deadline")
        end = time.monotonic() + seconds
        while not self._over.wait(_PAUSE):
            if not _is_alive(int(self._live.details["pid"])):
                self.end(NotTried("its container ended meanwhile"))
            elif time.monotonic() > end:
                late = f"it was not done within {seconds:g} s"
                self.end(RestoreFailed(late, hint="see restore.deadline"))

    def _restore(self) -> None:
        """All of it but the end, in a thread whose mounts are its own."""
        live, snapshot, device = self._live, self._snapshot, Device()
        with ExitStack() as stack:
            with _no_fault():
                own_mounts()
                work, given = _furnished(live, snapshot, stack)
            stack.callback(device.close)
            gpus = _judged(work, live, snapshot, device)
            check_whole(snapshot, sums=False)
            memory = memory_of(work, snapshot, snapshot.criu, ReadAhead())
            stack.callback(memory.close)
            plan = planned(work, work.bundle.spec(), snapshot, snapshot.criu, memory)
            mounts = as_tried(list(plan.mounts), given.kinds, _resolve(live))
            plan = dataclasses.replace(plan, mounts=tuple(mounts), gpus=gpus)
            memory.read_ahead()
            self._do(work, plan, memory, device)
            _ensure_alive(work)

    def _do(self, work: Work, plan: Plan, memory: Memory, device: Device) -> None:
        for step in steps_of(memory, Adoption(), device):
            if step.name not in _STEPS:
                continue
            if self._ended is not None:
                raise self._ended
            try:
                step.do(work, plan)
            except GpuFailed as error:
                if _NO_ROOM not in error.message:
                    raise
                raise NotTried(f"GPU memory was taken meanwhile: {error.message}") from error


def remove(work: Work) -> dict[str, Any]:
    """Remove whatever is left of the trial beside `work`'s container; nothing there is no error.

    Raises ThawError, OSError; what is needed for another attempt is still there then.
    """
    trial = _trial_of(work)
    if os.path.exists(trial.bundle.config):
        end_processes(trial, planning.bare(trial, trial.folder))
    remove_folder(str(assembled_images(trial)))
    remove_folder(str(_scratch_of(work)))
    remove_folder(str(trial.folder))
    if not work.folder.exists():  # nor is anybody else who would remove the namespace's
        with suppress(OSError):
            trial.folder.parent.rmdir()
    return {}


def _trial_of(work: Work) -> Work:
    """The trial beside a container, as an engine would be told of it."""
    folder = Path(folder_of(str(work.folder)))
    return dataclasses.replace(
        work,
        verb="restore",
        id=f"{work.id}-verify",
        bundle=Bundle(str(folder / "bundle")),
        folder=folder,
        rootfs=(),
        terminal=False,
        config=work.config.overridden({"gpu.wait": 0.0}),  # its original does not go away
        details={"name": "", "outright": True},
        fds={},
        raw={},
    )


def _scratch_of(work: Work) -> Path:
    """What may be large, on the disk of the first store; a draft's name, see store.py."""
    return Path(work.config.several("snapshots")[0]) / f".draft-verify-{work.id}"


def _obstacles(work: Work, snapshot: Snapshot) -> Iterator[str]:
    """Why there can be no second one beside this container."""
    if work.upper is None:
        yield "its root file system is no writable overlay"
    yield from reasons(work.bundle.spec())
    pages = snapshot.config.pages
    needed = sum(size for name, size in pages.items() if not gpu_number(name))
    free = available()
    if needed > free:
        yield f"{needed / GIB:.1f} GiB of memory are needed, the node has {free / GIB:.1f}"


@contextmanager
def _scratch(work: Work) -> Iterator[None]:
    """The folders of a trial, with what is needed to remove them when we are not there any more."""
    lock = -1
    try:
        with _no_fault():
            remove(work)  # of an engine that was killed, and nobody came
            lock = _make_folders(work)
        yield
    finally:
        try:
            remove(work)
        finally:
            if lock >= 0:
                os.close(lock)


def _make_folders(work: Work) -> int:
    """Make both; answers the lock without which one of them would be swept."""
    folder, scratch = _trial_of(work).folder, _scratch_of(work)
    folder.mkdir(mode=0o700)
    request = {**work.raw, "verb": "end-trial", "fds": []}
    write_atomically(str(folder / REQUEST), json.dumps(request).encode())
    scratch.mkdir(mode=0o700, parents=True)
    return claim(scratch)


@contextmanager
def _no_fault() -> Iterator[None]:
    """What goes wrong within is no fault of the snapshot's."""
    try:
        yield
    except (ThawError, OSError) as error:
        raise NotTried(error.message if isinstance(error, ThawError) else str(error)) from error


def _furnished(live: Work, snapshot: Snapshot, stack: ExitStack) -> tuple[Work, Given]:
    """The trial with all that it has instead of its original's; its spec is written."""
    trial, scratch, spec = _trial_of(live), _scratch_of(live), live.bundle.spec()
    config = snapshot.config
    Path(trial.bundle.rootfs).mkdir(mode=0o755, parents=True)
    root = give_root(live, scratch, contents=not config.difference)
    given = give_volumes(spec, config, _resolve(live), trial.folder, scratch)
    network = in_thread(lambda: own_network(config.origin.addresses))
    stack.callback(os.close, network)
    made = derived(
        spec,
        given.sources,
        network=f"/proc/{os.getpid()}/fd/{network}",
        cgroup=cgroups_path(trial.id, systemd=trial.config.flag("SystemdCgroup")),
        criu_config=str(trial.folder / CRIU_CONFIG),
    )
    trial.bundle.save(made)
    return dataclasses.replace(trial, rootfs=root, fds=stack.enter_context(streams())), given


def _judged(
    work: Work, live: Work, snapshot: Snapshot, device: Device
) -> tuple[tuple[str, str], ...]:
    """The GPUs are those that it was just made on: all they can lack is room."""
    try:
        return tuple(device.judge(work, live.bundle.spec(), snapshot.config, snapshot))
    except Unfit as error:
        raise NotTried(error.message) from error


def _resolve(live: Work) -> Resolve:
    return inside(f"/proc/{live.details['pid']}/root")


def _ensure_alive(work: Work) -> None:
    """Whoever ends at once has not come back."""
    if not _is_alive(read_pid(work.bundle.pid_file)):
        raise RestoreFailed("its first process has ended at once")


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("X", "Z")


def _kill(trial: Work) -> None:
    """Kill whoever is in the trial's cgroup by now, CRIU included."""
    with suppress(ThawError, OSError):
        spec = trial.bundle.spec()
        path = spec["linux"]["cgroupsPath"]
        of_spec(path, trial.id, trial.config.flag("SystemdCgroup")).kill(_PAUSE)
