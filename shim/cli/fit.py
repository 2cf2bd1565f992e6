"""`thaw fit`: whether a snapshot would be restored here, and every reason why not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shim.bundle import annotations_of
from shim.cli import exits, output, subject, target
from shim.cli.target import Target
from shim.config import Config
from shim.errors import NoSuchSnapshot, ThawError
from shim.reference import parse
from shim.restore import plan as planning
from shim.snapshot import fit, policy, privileges
from shim.snapshot.artifact import check_digest
from shim.snapshot.host import criu_version, this_host
from shim.snapshot.index import Index
from shim.snapshot.store import Snapshot, check_whole


@dataclass(frozen=True)
class Reason:
    """Why a snapshot would not be restored: which check says so, and what may help."""

    check: str
    reason: str
    hint: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("snapshot", metavar="REF|DIR", help="of a snapshot")
    target.arguments(parser, required=False)


def run(args: argparse.Namespace, config: Config) -> int:
    """Print all reasons; without a bundle or a container, those of this machine."""
    wanted = target.named(args, config)
    with subject.opened(args.snapshot, config) as opened:
        if opened.snapshot is None:
            raise NoSuchSnapshot(
                f"{opened.path} is no snapshot of Thaw's", hint="nothing says what it would fit"
            )
        found = list(reasons(opened.snapshot, opened.name, wanted, config))
    document = {"fits": not found, "reasons": found}
    output.emit(args, document, lambda: _lines(found, wanted))
    return exits.UNFIT if found else exits.OK


def reasons(
    snapshot: Snapshot, name: str, wanted: Target | None, config: Config
) -> Iterator[Reason]:
    """Every reason why this machine, or this container, is none for the snapshot.

    The checks are the engine's (restore/engine.py); `name` is what the snapshot was found by.
    """
    indexed = snapshot.index.is_dir()
    yield from _first("snapshot", lambda: check_whole(snapshot, skeleton=not indexed))
    if indexed:
        yield from _first("index", lambda: _check_index(snapshot))
    if "@" in name:
        yield from _first("digest", lambda: check_digest(snapshot, parse(name).digest))
    yield from _first("criu", lambda: criu_version(config))
    live = wanted.live if wanted is not None else snapshot.config.origin
    for reason in fit.reasons(snapshot.config, live, this_host(gpus=False)):
        yield Reason("machine" if wanted is None else "fit", reason)
    yield from _gpus(snapshot, wanted, config)
    if wanted is not None:
        yield from _in_container(snapshot, wanted, config)


def _gpus(snapshot: Snapshot, wanted: Target | None, config: Config) -> Iterator[Reason]:
    spec = wanted.spec if wanted is not None else None
    runtime = wanted.work.config.text("BinaryName") if wanted is not None else ""
    try:
        for reason in fit.gpu_reasons(snapshot.config, spec, runtime):
            yield Reason("gpu", reason)
    except ThawError as error:
        yield Reason("gpu", error.message, error.hint)
    notes = annotations_of(wanted.spec) if wanted is not None else {}
    settings = wanted.work.config if wanted is not None else config
    for reason in fit.library_reasons(snapshot.config, snapshot.criu, notes, settings):
        yield Reason("gpu", reason, fit.LIBRARY_HINT)


def _in_container(snapshot: Snapshot, wanted: Target, config: Config) -> Iterator[Reason]:
    then, now = snapshot.config.origin, wanted.live
    if then.container != now.container and not (wanted.asks and wanted.asks.outright):
        yield Reason(
            "container",
            f"the snapshot is of container {then.container!r}, not {now.container!r}",
            f"thaw.dev/snapshot.{now.container} names one outright",
        )
    shared, by = snapshot.shared, snapshot.config.maker.by
    yield from _first(
        "policy", lambda: policy.check_namespace(config, then.namespace, now.namespace, shared, by)
    )
    yield from _first("privileges", lambda: privileges.check(snapshot.criu, wanted.spec))
    yield from _first(
        "plan",
        lambda: planning.make(
            wanted.work, wanted.spec, snapshot.config, snapshot.path, snapshot.criu
        ),
    )


def _first(check: str, look: Callable[[], object]) -> Iterator[Reason]:
    """What a check raises, which is the first thing that it finds."""
    try:
        look()
    except ThawError as error:
        yield Reason(check, error.message, error.hint)
    except OSError as error:
        yield Reason(check, str(error))


def _check_index(snapshot: Snapshot) -> None:
    in_pieces = tuple(snapshot.pages) != (snapshot.criu,)
    pages = snapshot.pages if in_pieces else None
    Index.open(snapshot.index, snapshot.criu, pages).check_files()


def _lines(found: list[Reason], wanted: Target | None) -> Iterator[str]:
    place = "this machine" if wanted is None else f"container {wanted.work.id}"
    if not found:
        yield f"fit: it would be restored {'on' if wanted is None else 'in'} {place}"
        return
    yield f"unfit for {place}:"
    width = max(len(reason.check) for reason in found)
    for reason in found:  # no table: reasons are sentences, some of them long
        yield f"  {reason.check:<{width}}  {reason.reason}"
        if reason.hint:
            yield f"  {'':<{width}}  → {reason.hint}"
