"""`thaw rm`: remove names, and the snapshots that no name is left for."""

from __future__ import annotations

import argparse
import os

from shim import audit, names
from shim.cli import exits, output
from shim.config import Config
from shim.errors import NoSuchSnapshot, ThawError
from shim.reference import Reference, parse
from shim.snapshot import lost
from shim.snapshot.store import Store, Stores

_SHA = "sha256:"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "references",
        metavar="REF",
        nargs="+",
        help="a name: its snapshot goes with its last name; a digest (NAME@sha256:… or sha256:…) "
        "or an id: the snapshot goes with all its names",
    )
    parser.add_argument("--wait", action="store_true", help="until it is not restored from")


def run(args: argparse.Namespace, config: Config) -> int:
    """Remove each, whatever becomes of the others; the status is the first failure's."""
    stores, status, done = Stores.of(config), exits.OK, []
    for text in args.references:
        try:
            done.append({"reference": text, **_remove(stores, text, config, wait=args.wait)})
        except (ThawError, OSError) as error:
            output.complain("rm", error)
            status = status or exits.status_of(error)
    output.emit(args, done, list)
    return status


def _remove(stores: Stores, text: str, config: Config, *, wait: bool) -> dict[str, object]:
    """What was removed: the snapshot's id, whether it is gone, the names that lead to it still."""
    wanted = Reference(text, digest=text) if text.startswith(_SHA) else parse(text)
    tried_again = _forget_lost(stores, wanted)
    try:
        store, id = _find(stores, wanted)
    except NoSuchSnapshot:
        if not _untag_lost(stores, wanted) and not tried_again:
            raise
        return {"id": "", "removed": False, "names": []}
    left = [names.unquoted(name) for name in _others(store, wanted, id)]
    digest = _digest(store, id)
    try:
        if left:
            store.untag(wanted.file_name)
        else:
            store.remove(id, wait=wait)
    except (ThawError, OSError) as error:
        _record(config, text, id, digest, "failed", str(error))
        raise
    _record(config, text, id, digest, "untagged" if left else "removed", "rm")
    return {"id": id, "removed": not left, "names": left}


def _find(stores: Stores, wanted: Reference) -> tuple[Store, str]:
    if wanted.name or wanted.remote:
        return stores.find(wanted)
    for store in stores:
        id = names.id_of(str(store.folder), wanted)
        if id is not None and os.path.lexists(store.path_of(id)):
            return store, id
    raise NoSuchSnapshot(f"no snapshot with the digest {wanted.text}", hint="see `thaw ls -a`")


def _others(store: Store, wanted: Reference, id: str) -> list[str]:
    """The names of a snapshot but for the one that is given; none if it is not meant by its name.

    Of a digest there is one snapshot, however it is called.
    """
    if wanted.digest or names.id_of(str(store.folder), wanted) != id:
        return []
    called = [name for name, other in store.names().items() if other == id]
    return [name for name in called if name != wanted.file_name]


def _untag_lost(stores: Stores, wanted: Reference) -> bool:
    """Remove a name that leads nowhere any more, if that is what is meant."""
    if wanted.digest or wanted.auto:
        return False
    for store in stores:
        if names.id_of(str(store.folder), wanted) is not None:
            store.untag(wanted.file_name)
            return True
    return False


def _forget_lost(stores: Stores, wanted: Reference) -> bool:
    """Forget that a worker was lost over that name; whether there was anything to forget."""
    if wanted.digest or wanted.remote or wanted.auto:
        return False
    return lost.forget(stores.first.folder, wanted.name)


def _digest(store: Store, id: str) -> str:
    try:
        return store.snapshot(id).digest
    except ThawError:  # it is removed because it is damaged, maybe
        return ""


def _record(config: Config, text: str, id: str, digest: str, outcome: str, reason: str) -> None:
    audit.record(config, "remove", name=text, id=id, digest=digest, outcome=outcome, reason=reason)
