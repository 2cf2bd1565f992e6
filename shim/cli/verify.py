"""`thaw verify`: read snapshots and compare them with all their checksums."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field

from shim.cli import exits, output
from shim.cli.progress import Progress
from shim.cli.seal import sealed
from shim.config import Config
from shim.errors import InvalidArgument, ThawError, Unfit
from shim.snapshot.store import Snapshot, Stores, held
from shim.snapshot.verification import verify, work

_MOST_THREADS = 1024


@dataclass
class Line:
    """What was found of one snapshot."""

    name: str
    id: str = ""
    digest: str = ""
    bytes: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("references", metavar="REF", nargs="*")
    parser.add_argument("--all", action="store_true", help="all that there are")
    parser.add_argument("--threads", type=_threads, default=0, metavar="N")
    parser.add_argument("--seal", action="store_true", help="then make digests, where none are")


def run(args: argparse.Namespace, config: Config) -> int:
    """Verify each; the answer is no if one has a fault."""
    if bool(args.references) == args.all:
        raise InvalidArgument("which snapshots?", hint="give REF, or --all")
    stores = Stores.of(config)
    lines, status = [], exits.OK
    for name, found in _wanted(stores, args):
        try:
            lines.append(_verified(args, config, name, _opened(stores, found)))
        except Unfit as error:
            lines.append(Line(name, faults=[error.message]))
        except (ThawError, OSError) as error:
            output.complain("verify", error)
            status = status or exits.status_of(error)
    output.emit(args, lines, lambda: [text for line in lines for text in _text(line)])
    return exits.UNFIT if any(line.faults for line in lines) else status


def _wanted(stores: Stores, args: argparse.Namespace) -> Iterator[tuple[str, Snapshot | str]]:
    """What each is called, and itself, or how it is found."""
    if not args.all:
        yield from ((text, text) for text in args.references)
        return
    for store in stores:
        for entry in sorted(store.entries(), key=lambda e: (not e.names, e.names, e.id)):
            name = entry.names[0] if entry.names else entry.id
            yield name, entry.snapshot or entry.id


def _opened(stores: Stores, found: Snapshot | str) -> Snapshot:
    return stores.open(found) if isinstance(found, str) else found


def _verified(args: argparse.Namespace, config: Config, name: str, snapshot: Snapshot) -> Line:
    with held(snapshot.path), Progress(args, f"verify {name}", work(snapshot)) as progress:
        verdict = verify(snapshot, config, args.threads, progress)
        seconds = progress.seconds
    if args.seal and not verdict.faults:
        sealed(args, snapshot, args.threads)
    digest = _digest(snapshot)
    return Line(name, snapshot.id, digest, verdict.bytes, seconds, verdict.faults, verdict.notes)


def _digest(snapshot: Snapshot) -> str:
    try:
        return snapshot.digest
    except Unfit:  # one of the faults
        return ""


def _text(line: Line) -> list[str]:
    if line.faults:
        return [f"{line.name}: {fault}" for fault in line.faults]
    figures = f"{output.size(line.bytes)} in {output.duration(line.seconds)}"
    speed = output.rate(line.bytes, line.seconds)
    good = f"{line.name}: good ({figures}, {speed}){'  ' if line.digest else ''}{line.digest}"
    return [good, *(f"{line.name}: {note}" for note in line.notes)]


def _threads(text: str) -> int:
    if not (text.isdecimal() and int(text) <= _MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to {_MOST_THREADS}")
    return int(text)
