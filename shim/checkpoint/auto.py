"""Waiting until a worker that was booted cold is warm, for the snapshot that is made of it, under
the name that its pod gives or one that is derived (`auto`).

One engine waits and then dumps, so that the lease on the name, which keeps other containers and
other nodes from making the same snapshot, is held from the beginning to the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from shim import names
from shim.annotations import Probe
from shim.errors import GpuLost, StoreFull, ThawError
from shim.readiness import ensure_running, wait
from shim.reference import AUTO, check_name, parse
from shim.snapshot import lost
from shim.snapshot.config import Gpu
from shim.snapshot.derived import key_of, name_of
from shim.snapshot.host import this_host
from shim.snapshot.image import image_of
from shim.snapshot.lease import Lease
from shim.snapshot.origin import origin_of
from shim.snapshot.store import Stores
from shim.snapshot.writing import writing
from shim.work import Work

_PAUSE = 1.0  # seconds between two looks whether somebody else is still at it
_RESERVE = 0.1  # of the store's file system is left alone


def derived_name(work: Work) -> str:
    """The name that `auto` stands for in this container. Raises ThawError if there can be none."""
    store = Stores.of(work.config).first
    spec = work.bundle.spec()
    origin = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
    with writing(store.folder):
        key = key_of(store.folder)
    host = replace(this_host(gpus=False), gpus=_kinds(spec, work.config.text("BinaryName")))
    return name_of(spec, origin, host, key)


def _kinds(spec: Mapping[str, Any], runtime: str) -> list[Gpu]:
    """Of the GPUs that the container has; what else is in the machine is no matter of its own."""
    from shim.gpu.given import given, has_gpus

    if not has_gpus(spec, runtime):
        return []
    from shim.gpu.nvml import gpus
    from shim.gpu.rules import kinds

    return kinds(given(spec, gpus(), runtime))


def _worker(work: Work, derived: str) -> str:
    """What a worker on GPUs has in common with its equals: the name derived, the settings."""
    from shim.gpu.given import has_gpus

    if not has_gpus(work.bundle.spec(), work.config.text("BinaryName")):
        return ""
    with suppress(ThawError):  # for a name that was given, none need be possible
        settings = {k: v for k, v in work.config.as_dict().items() if k.startswith("gpu.")}
        return f"{derived or derived_name(work)} {json.dumps(settings, sort_keys=True)}"
    return ""


def there(work: Work, reference: str) -> bool:
    """Whether one of the node's stores has that snapshot."""
    return names.find(work.config.several("snapshots"), parse(reference)) is not None


def _refuse_a_full_store(work: Work) -> None:
    """No operator has asked for this one snapshot: it may not take the last room."""
    folder = Stores.of(work.config).first.folder
    room = os.statvfs(folder)
    if room.f_bavail < room.f_blocks * _RESERVE:
        raise StoreFull(
            f"less than {_RESERVE:.0%} of {folder} is free",
            hint="`thaw gc` makes room within the limits of retention.size and retention.age",
        )


class Making:
    """The making of one snapshot, in an engine of its own."""

    def __init__(self) -> None:
        self._lease: Lease | None = None
        self._name = ""
        self._worker = ""  # what tells it from those that may fare better; "": nothing does

    def wait(self, work: Work) -> dict[str, Any]:
        """Wait until the worker is warm; answers the name, or why nothing is to be done."""
        make = work.details["make"]
        name = derived_name(work) if make == AUTO else check_name(make)
        anew = bool(work.details.get("anew"))  # what is there could not be restored
        if not anew and not self._take(work, name):
            return {"name": "", "because": f"{name} is there"}
        if anew and not self._take_at_once(work, name):
            return {"name": "", "because": f"somebody else is making {name} anew"}
        self._name, self._worker = name, _worker(work, name if make == AUTO else "")
        lost.refuse(Stores.of(work.config).first.folder, name, self._worker)
        ready = work.details["ready"]
        wait(Probe(ready["kind"], ready["target"]), work)
        assert self._lease is not None
        if not self._lease.held or (there(work, name) and not anew):
            return {"name": "", "because": f"somebody else has made {name}"}
        _refuse_a_full_store(work)
        return {"name": name, "because": ""}

    def _take(self, work: Work, name: str) -> bool:
        """Get the lease, as soon as nobody has it; False once the snapshot is there."""
        while not there(work, name):
            if self._take_at_once(work, name):
                return True
            ensure_running(work, _PAUSE)
        return False

    def _take_at_once(self, work: Work, name: str) -> bool:
        store = Stores.of(work.config).first
        with writing(store.folder):
            self._lease = Lease.take(store.folder, name)
        return self._lease is not None

    def lose(self, work: Work, error: GpuLost) -> None:
        """The worker was lost over it: no other like it is to be."""
        if self._worker:
            with suppress(OSError):  # it is said in the log, and in this pod nobody tries again
                lost.note(Stores.of(work.config).first.folder, self._name, self._worker, str(error))

    def release(self) -> None:
        """Let others make it."""
        if self._lease is not None:
            self._lease.release()
