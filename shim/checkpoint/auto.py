"""`auto`: waiting until a worker that was booted cold is warm, for the snapshot that is made of it.

One engine waits and then dumps, so that the lease on the name, which keeps other containers and
other nodes from making the same snapshot, is held from the beginning to the end.
"""

from __future__ import annotations

from typing import Any

from shim import names
from shim.annotations import Probe
from shim.errors import StoreFull
from shim.readiness import wait
from shim.reference import parse
from shim.snapshot.derived import key_of, name_of
from shim.snapshot.host import this_host
from shim.snapshot.image import image_of
from shim.snapshot.lease import Lease
from shim.snapshot.origin import origin_of
from shim.snapshot.store import Stores
from shim.work import Work


def derived_name(work: Work) -> str:
    """The name that `auto` stands for in this container. Raises ThawError if there can be none."""
    store = Stores.of(work.config).first
    spec = work.bundle.spec()
    origin = origin_of(spec, *image_of(work.containerd, work.namespace, work.id))
    try:
        key = key_of(store.folder)
    except OSError as error:
        raise StoreFull(
            f"cannot keep a key in {store.folder}: {error.strerror}",
            hint="`auto` needs a store that can be written to",
        ) from error
    return name_of(spec, origin, this_host(), key)


def there(work: Work, reference: str) -> bool:
    """Whether one of the node's stores has that snapshot."""
    return names.find(work.config.several("snapshots"), parse(reference)) is not None


class Making:
    """The making of one snapshot, in an engine of its own."""

    def __init__(self) -> None:
        self._lease: Lease | None = None

    def wait(self, work: Work) -> dict[str, Any]:
        """Wait until the worker is warm; answers the name, or why nothing is to be done."""
        name = derived_name(work)
        if there(work, name):
            return {"name": "", "because": f"{name} is there"}
        self._lease = Lease.take(Stores.of(work.config).first.folder, name)
        if self._lease is None:
            return {"name": "", "because": f"somebody else is making {name}"}
        ready = work.details["ready"]
        wait(Probe(ready["kind"], ready["target"]), work)
        if there(work, name) or not self._lease.held:
            return {"name": "", "because": f"somebody else has made {name}"}
        return {"name": name, "because": ""}

    def release(self) -> None:
        """Let others make it."""
        if self._lease is not None:
            self._lease.release()
