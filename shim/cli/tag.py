"""`thaw tag`: give a snapshot another name, or share it."""

from __future__ import annotations

import argparse

from shim import audit, names
from shim.cli import output
from shim.config import Config
from shim.errors import AlreadyExists, BadName, InvalidArgument
from shim.reference import Reference, parse
from shim.snapshot.store import Store, Stores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a name, NAME@sha256:…, or an id")
    parser.add_argument("name", metavar="NAME", nargs="?", help="or REGISTRY/REPOSITORY:TAG")
    parser.add_argument("--replace", action="store_true", help="take the name from another one")
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--shared", action="store_true", help="pods of all namespaces may restore it"
    )
    access.add_argument("--private", action="store_true", help="only those of its own namespace")


def run(args: argparse.Namespace, config: Config) -> int:
    """Do what is asked for; all of it is checked first."""
    marked = args.shared or args.private
    if not args.name and not marked:
        raise InvalidArgument("nothing to do", hint="give a NAME, --shared or --private")
    stores = Stores.of(config)
    store, id = stores.find(args.source)
    digest = store.snapshot(id).digest  # what cannot be read gets no names
    wanted = _new(args.name) if args.name else None
    if wanted is not None:
        _refuse_hidden(stores, store, wanted)
        before = names.id_of(str(store.folder), wanted)
        store.tag(wanted.file_name, id, replace=args.replace)
        reason = f"was {before}" if before not in (None, id) else ""
        audit.record(
            config, "tag", name=wanted.text, id=id, digest=digest, outcome="tagged", reason=reason
        )
    if marked:
        store.mark_shared(id, args.shared)
        outcome = "shared" if args.shared else "private"
        audit.record(config, "share", name=args.source, id=id, digest=digest, outcome=outcome)
    shared = store.snapshot(id).shared
    document = {"name": args.name or args.source, "id": id, "digest": digest, "shared": shared}
    words = "shared" if shared else "private"
    output.emit(args, document, lambda: [f"{document['name']}  {id}  {words}"])
    return 0


def _new(text: str) -> Reference:
    wanted = parse(text)
    if wanted.auto or wanted.digest:
        raise BadName(
            f"a snapshot cannot be called {text}", hint="what it is called has no digest in it"
        )
    return wanted


def _refuse_hidden(stores: Stores, store: Store, wanted: Reference) -> None:
    """A name in a store that is searched before would be found instead."""
    for other in stores[: stores.index(store)]:
        if other.taken(wanted.file_name):
            raise AlreadyExists(
                f"a snapshot named {wanted.text} exists in {other.folder}, which is searched first",
                hint="choose another name",
            )
