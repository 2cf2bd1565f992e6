"""`thaw plan`: what a restore would do, step by step, without doing any of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from shim.cli import exits, output, subject, target
from shim.cli.fit import Reason, reasons
from shim.cli.subject import Subject
from shim.cli.target import Target
from shim.config import Config
from shim.errors import InvalidArgument, NoSuchSnapshot
from shim.names import KEY
from shim.reference import parse
from shim.restore import plan as planning
from shim.restore.plan import Plan
from shim.snapshot.index import Index
from shim.snapshot.store import Stores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "snapshot", metavar="REF|DIR", nargs="?", default="", help="default: what the spec asks for"
    )
    target.arguments(parser, required=True)


def run(args: argparse.Namespace, config: Config) -> int:
    """Print the steps; and on stderr, if it would not come to them, why."""
    wanted = target.named(args, config)
    assert wanted is not None  # the parser sees to it
    with subject.opened(args.snapshot or _asked_for(wanted), config) as opened:
        plan = planned(opened, wanted)
        against = _reasons(opened, wanted, config)
    document = {"plan": asdict(plan), "steps": plan.describe(), "reasons": against}
    output.emit(args, document, plan.describe)
    _complain(args, against)
    return exits.UNFIT if against else exits.OK


def planned(opened: Subject, wanted: Target) -> Plan:
    """The plan that the engine would make. Raises Unfit if it could make none."""
    index = _index(opened, wanted.work.config)
    if opened.snapshot is None:
        return planning.bare(wanted.work, opened.images, index)
    return planning.make(
        wanted.work,
        wanted.spec,
        opened.snapshot.config,
        opened.snapshot.path,
        opened.images,
        index,
        opened.pages,
    )


def _reasons(opened: Subject, wanted: Target, config: Config) -> list[Reason]:
    if opened.snapshot is None:
        return []
    return list(reasons(opened.snapshot, opened.name, wanted, config))


def _asked_for(wanted: Target) -> str:
    if wanted.asks is None:
        raise InvalidArgument(
            f"{wanted.work.bundle.config} asks for no snapshot", hint="name one: `thaw plan REF …`"
        )
    reference = parse(wanted.asks.name)
    return _derived(wanted) if reference.auto else reference.text


def _derived(wanted: Target) -> str:
    """The name that `auto` stands for. Without a key nothing was ever made; looking makes none."""
    from shim.checkpoint.auto import derived_name

    store = Stores.of(wanted.work.config).first
    if not (store.folder / KEY).exists():
        raise NoSuchSnapshot(f"nothing was made for `auto` in {store.folder} yet")
    return derived_name(wanted.work)


def _index(opened: Subject, config: Config) -> Path | None:
    """The index that the engine would use: as ReadAhead.take decides (restore/bulk.py)."""
    if config.text("restore.engine") != "native" or not opened.index.is_dir():
        return None
    found = Index.open(opened.index, opened.images, opened.pieces)
    return None if found.reason else opened.index


def _complain(args: argparse.Namespace, against: Sequence[Reason]) -> None:
    for reason in against:
        hint = f" ({reason.hint})" if reason.hint else ""
        output.say(args, f"it would not be restored: {reason.reason}{hint}")
