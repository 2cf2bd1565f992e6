"""`thaw diff`: what differs between two snapshots: what they need, their memory, their files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from shim.cli import output, subject
from shim.cli.progress import Progress
from shim.cli.subject import Subject
from shim.config import Config
from shim.snapshot import comparing
from shim.snapshot.archive import Archive
from shim.snapshot.comparing import Change, Difference, Pages, Side
from shim.snapshot.config import SnapshotConfig

# What of the document says what a snapshot was made from and needs. The rest is of its making.
_PARTS = ("origin", "host", "mounts", "volumes", "difference", "connections")
_STATES = {"different": "DIFFERENT", "first": "ONLY 1ST", "second": "ONLY 2ND", "equal": "EQUAL"}
_SHOWN = 200  # characters of a value


@dataclass(frozen=True)
class Fact:
    """Something that the config documents say differently."""

    what: str
    first: str
    second: str


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("first", metavar="A", help="a reference, or a path to a folder")
    parser.add_argument("second", metavar="B", help="the same")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print what differs."""
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(subject.opened(text, config)) for text in (args.first, args.second)
        )
        facts_ = _facts(first, second)
        memory = [] if args.no_memory else _memory(args, first, second)
        files = {path: comparing.archives(*pair) for path, pair in _archives(first, second).items()}
    document = {
        "equal": not (facts_ or any(d.differs for d in memory) or any(files.values())),
        "facts": facts_,
        "memory": memory,
        "files": files,
    }
    output.emit(args, document, lambda: _lines(facts_, memory, files))
    return 0


def _facts(first: Subject, second: Subject) -> list[Fact]:
    if first.snapshot is None or second.snapshot is None:
        return []
    return list(facts(first.snapshot.config, second.snapshot.config))


def facts(first: SnapshotConfig, second: SnapshotConfig) -> Iterator[Fact]:
    """What two documents say differently of what the snapshots were made from and need."""
    ours, theirs = asdict(first), asdict(second)
    for part in _PARTS:
        yield from _different(part, ours[part], theirs[part])


def _different(what: str, first: Any, second: Any) -> Iterator[Fact]:
    if first == second:
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            yield from _different(f"{what}.{key}", first.get(key, ""), second.get(key, ""))
    elif isinstance(first, Sequence) and isinstance(second, Sequence) and what != "origin.args":
        yield from _lists(what, first, second)
    else:
        yield Fact(what, _shown(first), _shown(second))


def _lists(what: str, first: Sequence[Any], second: Sequence[Any]) -> Iterator[Fact]:
    """Of lists, what is in one of them only; of text, and of the same in another order, all."""
    only = [item for item in first if item not in second]
    others = [item for item in second if item not in first]
    if isinstance(first, str) or isinstance(second, str) or not (only or others):
        yield Fact(what, _shown(first), _shown(second))
        return
    for item in only:
        yield Fact(what, _shown(item), "-")
    for item in others:
        yield Fact(what, "-", _shown(item))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        value = " ".join(f"{key}={_shown(inner)}" for key, inner in value.items())
    elif isinstance(value, list):
        value = " ".join(map(str, value))
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _memory(args: argparse.Namespace, first: Subject, second: Subject) -> list[Difference]:
    ours, theirs = first.look(), second.look()
    total = comparing.bytes_in_both(ours, theirs)
    with (
        Pages(first.pages) as here,
        Pages(second.pages) as there,
        Progress(args, "diff", total) as progress,
    ):
        return comparing.memory(Side(ours, here), Side(theirs, there), progress)


def _archives(first: Subject, second: Subject) -> dict[str, tuple[Archive | None, Archive | None]]:
    """The root difference and the volumes of both, by where they belong."""
    ours, theirs = _saved(first), _saved(second)
    return {
        path: (ours.get(path), theirs.get(path)) for path in sorted(ours.keys() | theirs.keys())
    }


def _saved(opened: Subject) -> dict[str, Archive]:
    if opened.snapshot is None:
        return {}
    made = opened.snapshot.config
    found = {path: opened.snapshot.volume(number) for number, path in enumerate(made.volumes)}
    return ({"/": opened.snapshot.difference} if made.difference else {}) | found


def _lines(
    facts_: Sequence[Fact], memory: Sequence[Difference], files: Mapping[str, Sequence[Change]]
) -> Iterator[str]:
    if facts_:
        yield from output.table(("WHAT", "FIRST", "SECOND"), map(_row, facts_))
    else:
        yield "made from the same, and needing the same"
    if memory:
        yield ""
        yield from _mappings(memory)
    for destination, changes in files.items():
        yield ""
        yield from _changes(destination, changes)


def _row(fact: Fact) -> tuple[str, str, str]:
    return fact.what, fact.first or "-", fact.second or "-"


def _mappings(memory: Sequence[Difference]) -> Iterator[str]:
    heads = ("PROCESS", "KIND", *_STATES.values(), "WHAT")
    found = sorted((d for d in memory if d.differs), key=lambda d: -_differing(d))
    rows = [
        (d.process, d.kind, *(output.size(d.bytes[state]) for state in _STATES), d.what)
        for d in found
    ]
    if rows:
        yield from output.table(heads, rows, right=set(_STATES.values()))
    equal = sum(d.bytes["equal"] for d in memory)
    differing = sum(map(_differing, memory))
    yield f"memory: {output.size(differing)} differ, {output.size(equal)} are equal"


def _differing(found: Difference) -> int:
    return sum(count for state, count in found.bytes.items() if state != "equal")


def _changes(destination: str, changes: Sequence[Change]) -> Iterator[str]:
    counts = comparing.listed(changes)
    said = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    yield f"files of {destination}: {said or 'all equal'}"
    for change in changes:
        yield f"  {change.how:<7}  {change.path}" + (f"  ({change.what})" if change.what else "")
