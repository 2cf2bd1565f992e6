"""Which folder a restore is from, where its name alone does not say it: `auto`, and pulling."""

from __future__ import annotations

import dataclasses
from typing import Any

from shim.annotations import POD_NAME, POD_NAMESPACE
from shim.bundle import annotations_of
from shim.errors import NoSuchSnapshot
from shim.reference import parse
from shim.snapshot.store import Stores
from shim.work import Work


def located(work: Work) -> Work:
    """The same work with its snapshot's folder. Raises NoSuchSnapshot if `auto` has none yet."""
    if work.details["snapshot"]:
        return work
    from shim.checkpoint.auto import derived_name, there  # imports more than a restore has time for

    reference = parse(work.details["name"])
    if reference.auto:
        reference = parse(derived_name(work))
        if not there(work, reference.text):
            raise NoSuchSnapshot(f"{reference.text} is not there yet", hint="it will be made")
    else:
        pull(work)
    path = Stores.of(work.config).open(reference).path
    details = {**work.details, "snapshot": str(path), "name": reference.text}
    return dataclasses.replace(work, details=details, raw=details)


def pull(work: Work) -> dict[str, Any]:
    """Fetch the artifact that the work names into the first store, unless it is there."""
    from shim.checkpoint.auto import there
    from shim.registry import pull as fetch
    from shim.snapshot.policy import allowed_to_pull

    reference = parse(work.details["name"])
    if there(work, reference.text):
        return {}
    allowed_to_pull(work.config, reference)
    store = Stores.of(work.config).first
    notes = annotations_of(work.bundle.spec())
    who = f"pod {notes.get(POD_NAMESPACE, '')}/{notes.get(POD_NAME, '')}"
    return {"id": fetch(store, reference, work.config, containerd=work.containerd, who=who)}
