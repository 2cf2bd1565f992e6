"""From a store to a registry: what is not there yet is sent, the manifest last."""

from __future__ import annotations

import threading
from contextlib import closing

from shim import audit
from shim.config import Config
from shim.errors import InvalidArgument, ThawError
from shim.reference import Reference
from shim.registry.attempts import failure, persist
from shim.registry.gathering import each
from shim.registry.progress import Halt, Progress
from shim.registry.repository import Repository
from shim.registry.upload import Upload
from shim.snapshot.artifact import Descriptor, blobs_of, manifest_of, seal, size_to_seal
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import held


def push(
    snapshot: Snapshot,
    reference: Reference,
    config: Config,
    progress: Progress | None = None,
    *,
    cancelled: threading.Event | None = None,
    who: str = "",
) -> str:
    """Send a snapshot, which is sealed if need be, to a registry: the manifest's digest.

    `cancelled` ends it early; `who` is for the audit log. Raises InvalidArgument, Unfit, Damaged,
    RegistryFailed, StoreFull, FailedPrecondition (it cannot be sealed there), Cancelled.
    """
    if not reference.remote:
        raise InvalidArgument(
            f"{reference.text} is in no registry", hint="push needs REGISTRY/REPOSITORY:TAG"
        )
    told = {"who": who, "name": reference.text, "id": snapshot.id}
    try:
        with held(snapshot.path):
            digest = _push(snapshot, reference, config, progress or Progress(), cancelled)
    except (ThawError, OSError) as error:
        audit.record(config, "push", **told, **failure(error))
        raise
    audit.record(config, "push", **told, digest=digest, outcome="done")
    return digest


def _push(
    snapshot: Snapshot,
    reference: Reference,
    config: Config,
    progress: Progress,
    cancelled: threading.Event | None,
) -> str:
    if not snapshot.digest:
        progress.begin("seal", size_to_seal(snapshot))
    digest = seal(snapshot, progress=progress.advance, cancelled=cancelled)
    if reference.digest and reference.digest != digest:
        raise InvalidArgument(
            f"{reference.text} cannot be {snapshot.id}, which is {digest}", hint="push to a tag"
        )
    raw, manifest = manifest_of(snapshot)
    paths = blobs_of(snapshot, manifest)
    halt = Halt(cancelled)
    with closing(Repository(reference, config, push=True)) as repository:

        def send(blob: Descriptor) -> None:
            Upload(repository, paths[blob.digest], blob.digest, blob.size, halt, progress).run()

        layers = {blob.digest: blob for blob in manifest.layers}
        progress.begin("push", manifest.config.size + sum(blob.size for blob in layers.values()))
        # Alone: what is wrong with the registry is said once.
        each(send, [manifest.config], 1, halt, repository.abort)
        transfers = int(config.number("registry.transfers"))
        each(send, list(layers.values()), transfers, halt, repository.abort)
        what = f"the manifest of {reference.text}"
        persist(what, halt, progress, lambda: repository.put_manifest(raw))
    return digest
